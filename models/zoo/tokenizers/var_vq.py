"""VAR-VQ: the multi-scale residual VQ tokenizer of VAR (arXiv:2404.02905, algorithms 1 and 2).

New: an image is coded at growing grid sizes with one codebook, each scale coding what the smaller ones left over, so that a
generator predicts a whole scale at a time.
Differs: training code for this tokenizer was never published.  By default the codebook follows moving averages of the vectors assigned
to it, codes out of use are revived with vectors of evenly drawn scales, both over all workers, and convolutions suit small images; the
size has the released nets and a learned codebook (``update: learned``), the losses are not published.
Run: tokenloom run digits_var
Expect: held-out digits (32x32, 750 steps of 64, learning rate 4e-3, about 50 CPU seconds): mean squared error 0.031 on [-1, 1], PSNR 21 dB,
0.23 M parameters; codes in use 100 % at 4x4, 88 % at 2x2 and 3x3, 37 % at 1x1.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import VAR_VQ
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, codebook


@register(
    "var_vq",
    kind="tokenizer",
    paper="2404.02905",
    tiny=TINY | {"scales": [1, 2, 4], "codes": 16, "dim": 4},
    sizes=VAR_VQ,
)
def var_vq(
    scales: tuple[int, ...] = (1, 2, 3, 4),
    codes: int = 256,
    dim: int = 8,
    beta: float = 0.25,
    phis: int = 4,
    ratio: float = 0.5,
    kernel: int = 3,
    metric: Literal["l2", "cosine"] = "l2",
    update: Literal["averages", "learned"] = "averages",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``scales[-1]`` must be the latent grid; ``phis`` convolutions, at most one a scale, are blended in by ``ratio``; ``kernel`` of the
    convolutions before and after the quantizer."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=MultiScale.Config(
            codebook=codebook(codes, dim, metric, update), scales=scales, beta=beta, phis=min(phis, len(scales)), ratio=ratio
        ),
        latent=small.latent or dim,
        quant_kernel=kernel,
        **small.losses(2 * small.channels),
    )

"""NFIG-VQ: tokens by frequency bands from low to high (arXiv:2503.07076).

New: scale k codes what the smaller ones left over of the latent's frequencies up to a cut-off that grows with k, low bands on small
grids; a next-scale generator then predicts frequencies from low to high.
Differs: training code was never published.  The bands are cut from the latent by an ideal low-pass (FFT), cut-offs in proportion to
the grids; moving averages and revival for the codebook; convolutions that suit small images; the perceptual and the adversarial loss only
if set.  The size of the published model is not told.
Run: tokenloom run smoke_nfig
Expect: held-out digits (32x32, 750 steps of 64, learning rate 4e-3): 30 codes of 256, squared error 0.033 on [-1, 1], PSNR 20.8 dB, all
codes in use, 0.23 M parameters.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small
from tokenloom.models.zoo.tokenizers.nfig.quantizer import Frequency


@register(
    "nfig",
    kind="tokenizer",
    paper="2503.07076",
    tiny=TINY | {"scales": [1, 2, 4], "codes": 16, "dim": 4},
)
def nfig(
    scales: tuple[int, ...] = (1, 2, 3, 4),
    codes: int = 256,
    dim: int = 8,
    beta: float = 0.25,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``scales[-1]`` must be the latent grid."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Frequency.Config(
            codebook=Codebook.Config(codes=codes, dim=dim, update=EMA(), revival=Revival(threshold=0.2)),
            scales=scales,
            beta=beta,
            phis=min(4, len(scales)),
        ),
        latent=dim,
        quant_kernel=3,
        **small.losses(2 * small.channels),
    )

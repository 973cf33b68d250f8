"""FlexVAR-VQ: one image coded at any grid sizes, without residuals (arXiv:2502.20313, section 3.2).

New: each scale codes the latent itself at that size and the decoder makes a whole image of any of them, so a generator predicts ever
larger images instead of corrections, on grids and in numbers of steps that need not be those of training.
Differs: training code was never published.  A step decodes the full grid and one size drawn from all below it, compared with the image
at that size.  By default the codebook follows moving averages and codes out of use are revived, and convolutions suit small images; the
size has the released nets and a learned codebook; the perceptual and the adversarial loss only if set.
Run: tokenloom run smoke_flexvar_vq
Expect: held-out digits (32x32, 750 steps of 64, learning rate 4e-3): squared error 0.045 on [-1, 1] from the last scale (4x4 codes of
512), PSNR 19.5 dB, all codes in use, 0.26 M parameters.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.flexible import Flexible
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import FLEXVAR_VQ
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, codebook


@register(
    "flexvar_vq",
    kind="tokenizer",
    paper="2502.20313",
    tiny=TINY | {"scales": [1, 2, 4], "codes": 16, "dim": 4},
    sizes=FLEXVAR_VQ,
)
def flexvar_vq(
    scales: tuple[int, ...] = (1, 2, 3, 4),
    trained: tuple[int, ...] = (),
    codes: int = 512,
    dim: int = 8,
    beta: float = 0.25,
    update: Literal["averages", "learned"] = "averages",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``scales[-1]`` must be the latent grid; ``trained`` sizes are drawn from in training
    (empty: all below the grid)."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Flexible.Config(
            codebook=codebook(codes, dim, "cosine", update),
            scales=scales,
            trained=trained,
            beta=beta,
        ),
        latent=small.out,
        **small.losses(),
    )

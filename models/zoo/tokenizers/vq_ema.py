"""VQ with a codebook of moving averages (arXiv:1711.00937, appendix A.1), started by k-means, gradients turned onto the code.

New: the codebook starts as k-means centres of the first batch, codes out of use are replaced by vectors of the present batch, and the
gradient keeps its angle to the code (rotation trick, arXiv:2410.06424) or passes straight.
Differs: distances are Euclidean (``vq`` compares directions); k-means, averages and revival see the global batch of all workers;
convolutions that suit small images, without attention, with 4x4 pixels a step at the ends.
Run: tokenloom run smoke_vq_ema
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 19.1 dB,
squared error 0.049 on [-1, 1], all codes in use, perplexity 860; rotation against straight is undecided (1 % apart in one pair).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small


@register(
    "vq_ema",
    kind="tokenizer",
    paper="2410.06424",
    tiny=TINY | {"codes": 16, "dim": 4},
)
def vq_ema(
    codes: int = 1024,
    dim: int = 8,
    beta: float = 0.25,
    decay: float = 0.97,
    gradient: Literal["rotation", "straight"] = "rotation",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``codes`` of ``dim`` channels at each position."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=VQ.Config(
            codebook=Codebook.Config(
                codes=codes, dim=dim, update=EMA(decay=decay, smoothing=1e-5), start=KMeans(), revival=Revival(threshold=0.2)
            ),
            beta=beta,
            gradient=Rotation() if gradient == "rotation" else Straight(),
        ),
        latent=small.out,
        **small.losses(),
    )

"""SimVQ: a codebook that cannot collapse, one linear map of a fixed random table (Zhu et al., arXiv:2411.02038).

New: the codes are W e_k; only W is learned, so every step moves all codes, the unused ones too.
Differs: convolutions that suit small images, without attention, with 4x4 pixels a step at the ends.
Run: tokenloom run smoke_simvq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 18.9 dB,
squared error 0.052 on [-1, 1], all codes in use, perplexity 570.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small
from tokenloom.models.zoo.tokenizers.simvq.quantizer import SimVQ


@register(
    "simvq",
    kind="tokenizer",
    paper="2411.02038",
    tiny=TINY | {"codes": 16, "dim": 4},
)
def simvq(
    codes: int = 1024,
    dim: int = 8,
    beta: float = 0.25,
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``codes`` of ``dim`` channels at each position."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=SimVQ.Config(codes=codes, dim=dim, beta=beta),
        latent=small.out,
        **small.losses(),
    )

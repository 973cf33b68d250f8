"""SimVQ: a codebook that cannot collapse, one linear map of a fixed random table (Zhu et al., arXiv:2411.02038).

New: the codes are W e_k; only W is learned, so every step moves all codes, the unused ones too.
Differs: convolutions that suit small images, without attention, with 4x4 pixels a step at the ends, unless ``net: magvit`` or a published
``size`` gives those of the paper.
Run: tokenloom run smoke_simvq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 codes of 1024): PSNR 18.9 dB,
squared error 0.052 on [-1, 1], all codes in use, perplexity 570.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published import tokenizers as published
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small
from tokenloom.models.zoo.tokenizers.simvq.quantizer import SimVQ


@register(
    "simvq",
    kind="tokenizer",
    paper="2411.02038",
    tiny=TINY | {"codes": 16, "dim": 4},
    sizes=published.SIMVQ,
)
def simvq(
    codes: int = 1024,
    dim: int = 8,
    beta: float = 0.25,
    net: Literal["convolutions", "magvit"] = "convolutions",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``codes`` of ``dim`` channels at each position.  ``net: magvit`` is as published: Open-MAGVIT2's convolutions
    without adaptive norms, and an affine map."""
    return Autoencoder.Config(
        net=small.magvit("none") if net == "magvit" else small.net(),
        quantizer=SimVQ.Config(codes=codes, dim=dim, beta=beta, map="affine" if net == "magvit" else "linear"),
        latent=dim if net == "magvit" else small.out,
        quant_kernel=0 if net == "magvit" else 1,
        **small.losses(),
    )

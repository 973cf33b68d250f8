"""PQ: product quantization, channels in groups with a codebook each (arXiv:2305.02765; multi-codebook tokens of UniTok, arXiv:2502.20321).

New: a position has one code a group; groups are independent, so the vocabulary multiplies while each codebook stays small.  Attention
over the positions, not a convolution, maps the features to the groups' channels and back (UniTok's attention factorisation).  The default
spends the ten bits of one codebook of 1024 on two of 32.
Differs: UniTok has eight groups of 4096 codes of 8 channels, a ViTamin-L on both sides, and a contrastive loss with a text encoder, of
which nothing is here; codebooks follow moving averages from a k-means start, over all workers; convolutions that suit small images, without
attention, with 4x4 pixels a step at the ends.
Run: tokenloom run smoke_pq
Expect: held-out Fashion-MNIST (32x32, 300 steps of 64, learning rate 4e-3, 16 positions of two codes of 32, ``between: convolution``):
PSNR 19.1 dB, squared error 0.050 on [-1, 1], all codes in use.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.tokenizers.factorised import Factorised
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, averaged
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped


@register(
    "pq",
    kind="tokenizer",
    paper="2502.20321",
    tiny=TINY | {"codes": 8, "dim": 2},
)
def pq(
    groups: int = 2,
    codes: int = 32,
    dim: int = 4,
    beta: float = 0.25,
    decay: float = 0.97,
    between: Literal["attention", "convolution"] = "attention",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``dim`` channels a group; ``between`` the nets and the codebooks stands UniTok's attention, or a 1x1 convolution."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=Grouped.Config(
            part=averaged(codes, dim, beta, decay),
            groups=groups,
        ),
        latent=small.out,
        factorised=Factorised.Config() if between == "attention" else None,
        **small.losses(),
    )

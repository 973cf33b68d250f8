"""VQ: a convolutional tokenizer with one code a position (VQGAN, arXiv:2012.09841; LlamaGen's quantizer, arXiv:2406.06525).

New: nothing; the baseline that raster generators use.  An image becomes one grid of codes, each the nearest entry of a
codebook of unit vectors (the codes' direction is compared, not their length, arXiv:2110.04627).
Differs: by default the codebook follows moving averages of the vectors assigned to it and codes out of use are revived, both over all
workers, and convolutions suit small images; the sizes have the published nets, learned codebook, PatchGAN and weights of losses, and the
perceptual loss where its file is given.
Run: tokenloom run digits_raster
Expect: held-out digits (32x32, 1000 steps of 32, learning rate 3e-3, about 40 CPU seconds): 16 codes of 512 give a squared error of 0.032
on [-1, 1], PSNR 21 dB, all codes in use; ``multipliers: [1]`` gives an 8x8 grid and 0.018 (500 steps of 64).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import VQ as VQ_SIZES
from tokenloom.models.zoo.tokenizers._small import SMALL, TINY, Small, codebook


@register(
    "vq",
    kind="tokenizer",
    paper="2406.06525",
    tiny=TINY | {"codes": 16, "dim": 4},
    sizes=VQ_SIZES,
)
def vq(
    codes: int = 512,
    dim: int = 8,
    beta: float = 0.25,
    entropy: float = 0.0,
    metric: Literal["cosine", "l2"] = "cosine",
    update: Literal["averages", "learned"] = "averages",
    small: Small = SMALL,
) -> Autoencoder.Config:
    """``codes`` of ``dim`` channels at each position; ``entropy`` weighs LlamaGen's entropy loss."""
    return Autoencoder.Config(
        net=small.net(),
        quantizer=VQ.Config(codebook=codebook(codes, dim, metric, update), beta=beta, entropy=entropy),
        latent=small.out,
        **small.losses(),
    )

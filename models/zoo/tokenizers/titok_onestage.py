"""TiTok in one stage: 1-D tokens that decode straight to pixels (the newer layout of TiTok, arXiv:2406.07550, and of arXiv:2501.07730).

New: against `titok` no base tokenizer: the mask tokens of the decoder become patches of pixels, smoothed by one convolution.
Differs: the codebook follows moving averages and codes out of use are revived, both over all workers; the perceptual and the adversarial
loss only if set; by default few and narrow blocks (the sizes: 64 to 256 tokens of 8192 codes of 64 channels, 8 to 24 blocks a side), whose
attention starts at each place's neighbourhood.
Run: tokenloom run smoke_titok_onestage
Expect: held-out digits (32x32, 600 steps of 32, learning rate 2e-3, about 52 CPU seconds): 16 codes of 512 give a squared error of 0.059 on
[-1, 1], all codes in use, 0.47 M parameters; nothing of the image shows before step 100.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.nets.queries import Queries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.published.tokenizers import TITOK_ONESTAGE
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses, codebook


@register(
    "titok_onestage",
    kind="tokenizer",
    paper="2406.07550",
    tiny={"tokens": 6, "codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2},
    sizes=TITOK_ONESTAGE,
)
def titok_onestage(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 12,
    patch: int = 8,
    width: int = 96,
    depth: int = 2,
    heads: int = 4,
    decoder: tuple[int, int, int] | None = None,
    beta: float = 0.25,
    metric: Literal["cosine", "l2"] = "cosine",
    update: Literal["averages", "learned"] = "averages",
    losses: Losses = LOSSES,
) -> Autoencoder.Config:
    """``tokens`` an image, whatever its size; width, depth and heads of the ``decoder`` are the encoder's if not given."""
    blocks = Blocks.Config(width=width, depth=depth, heads=heads)
    width, depth, heads = decoder or (width, depth, heads)
    return Autoencoder.Config(
        net=Queries(patch=patch, tokens=tokens, encoder_blocks=blocks, decoder_blocks=Blocks.Config(width=width, depth=depth, heads=heads)),
        quantizer=VQ.Config(codebook=codebook(codes, dim, metric, update), beta=beta),
        latent=dim,
        quant_kernel=0,
        **losses.losses(),
    )

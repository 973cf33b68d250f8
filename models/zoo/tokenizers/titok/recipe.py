"""TiTok: an image as a few 1-D tokens, learned through the codes of another tokenizer (arXiv:2406.07550).

New: learned queries read the patches and become the tokens; mask tokens read the tokens back.  In the first stage the decoder names the
code that a base tokenizer gives each patch (cross-entropy); in the second encoder and codebook rest, and the decoder, its soft codes as
a mean of the base's code vectors, and the base's pixel decoder behind them are trained on pixels.
Differs: both stages are one training run, ``stage2`` is the second's share of the steps; the codebook follows moving averages and codes
out of use are revived, both over all workers; the perceptual and the adversarial loss only if set; few and narrow blocks (the
sizes: 32 to 128 tokens of 4096 codes of 12 channels, 8 to 24 blocks a side), whose attention starts at each place's neighbourhood.
Run: tokenloom run smoke_titok
Expect: held-out digits (32x32, 800 steps of 32, learning rate 2e-3, about 90 CPU seconds, on a base of 400 steps with an error of 0.036):
16 codes of 512 give a squared error of 0.056 on [-1, 1], all codes in use, 0.75 M parameters.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.parts.nets.queries import Queries
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.zoo.published.tokenizers import TITOK
from tokenloom.models.zoo.tokenizers._small import LOSSES, Losses, codebook
from tokenloom.models.zoo.tokenizers.titok.module import TwoStage


@register(
    "titok",
    kind="tokenizer",
    paper="2406.07550",
    tiny={"tokens": 6, "codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2},
    codec="maskgit_vqgan",
    sizes=TITOK,
)
def titok(
    tokens: int = 16,
    codes: int = 512,
    dim: int = 12,
    stage2: float = 0.4,
    patch: int = 8,
    width: int = 96,
    depth: int = 2,
    heads: int = 4,
    beta: float = 0.25,
    reading: Literal["tokens", "scrambled"] = "tokens",
    update: Literal["averages", "learned"] = "averages",
    losses: Losses = LOSSES,
) -> TwoStage.Config:
    """``patch`` must be the image size over the side of the base's grid.  ``reading`` of the queries is scrambled in the released weights.
    The discriminator acts in the second stage."""
    blocks = Blocks.Config(width=width, depth=depth, heads=heads)
    return TwoStage.Config(
        net=Queries(patch=patch, tokens=tokens, encoder_blocks=blocks, decoder_blocks=blocks, reading=reading),
        quantizer=VQ.Config(codebook=codebook(codes, dim, "cosine", update), beta=beta),
        latent=dim,
        quant_kernel=0,
        stage2=stage2,
        **losses.losses(),
    )

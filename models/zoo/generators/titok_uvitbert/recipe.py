"""TiTok's larger generator: masked generation with a U-ViT (Yu et al. 2024, arXiv:2406.07550; net of arXiv:2209.12152).

New: long skips from early to late blocks, for 128 tokens and 64 steps.
Differs: no label smoothing, so that the loss is a likelihood.
Run: tokenloom run smoke_titok_uvitbert
Expect: ImageNet 256 FID 1.97 (S-128), with official weights.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.feeds.masked import MaskToken
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.sampling.sampler import PowerCosine, Sampler
from tokenloom.models.zoo.generators.titok_imagebert import annealed, titok_imagebert
from tokenloom.models.zoo.generators.titok_uvitbert.net import UViT
from tokenloom.models.zoo.published.titok import UVIT


@register(
    "titok_uvitbert",
    kind="generator",
    paper="2406.07550",
    tiny={"depth": 3, "width": 32, "heads": 2, "steps": 3},
    codec="titok",
    sizes=UVIT,
)
def titok_uvitbert(
    depth: int = 21,
    width: int = 1024,
    heads: int = 16,
    steps: int = 8,
    noise: float = 2.8,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """The released transformer by default; ``depth`` is odd."""
    return replace(
        titok_imagebert(depth, width, heads, steps, noise, classes, dropout, label_dropout),
        feed=MaskToken.Config(prefix=1, dropout=dropout),
        net=UViT.Config(
            width=width,
            depth=depth,
            heads=heads,
            norm=PreNorm.Config(kind="layer"),
            mlp=GELU.Config(form="none"),
            attention=Attention.Config(bias="out"),
            dropout=dropout,
        ),
        sampler=Sampler(guidance=PowerCosine(value=5.9, power=3.0, clock="begun"), temperature=annealed(noise)),
    )

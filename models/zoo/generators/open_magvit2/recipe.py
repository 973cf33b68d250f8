"""Open-MAGVIT2's generator: raster prediction of factorised tokens (Luo et al. 2024, arXiv:2409.04410).

New: a vocabulary of 2^18 is two sub-tokens, of 6 and 12 bits in the published models.  Their embeddings are added in the input; at each
position a small transformer gives one sub-token after the other from the big one's hidden state.
Differs: guidance and temperature are the same for all sub-tokens unless a run sets them (``sample.head``, ``sub_tokens``); dropout masks
come from the step's draws.
Run: tokenloom run smoke_open_magvit2
Expect: ImageNet 256 FID 3.08 (B), 2.51 (L), 2.33 (XL) with official weights.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.zoo.generators.open_magvit2.head import Factorised
from tokenloom.models.zoo.generators.raster import raster
from tokenloom.models.zoo.published.open_magvit2 import SIZES


@register(
    "open_magvit2",
    kind="generator",
    paper="2409.04410",
    tiny={"depth": 2, "width": 32, "heads": 2, "inner": 1},
    codec="lfq",
    sizes=SIZES,
)
def open_magvit2(
    depth: int = 24,
    width: int = 1024,
    heads: int = 16,
    inner: int = 2,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
) -> GroupGenerator.Config:
    """The B model by default; L and XL are (36, 1280) and (48, 1536) with 20 and 24 heads and ``inner`` 3 and 4 blocks a position."""
    base = raster(depth, width, heads, classes, dropout, label_dropout, multiple_of)
    assert isinstance(base.net, Transformer.Config)
    return replace(
        base,
        net=replace(base.net, norm=PreNorm.Config(kind="rms", eps=1e-5, last="raw")),
        head=Factorised.Config(net=replace(base.net, depth=inner, dropout=0.0)),
    )

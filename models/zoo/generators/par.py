"""PAR: parallelized autoregressive generation (Wang et al. 2024, arXiv:2412.15119).

New: distant tokens come together, neighbours one after the other.  The grid is cut into regions whose first tokens come one by
one; then each step gives the next token of every region, from the tokens of the step before it.
Differs: nothing but that dropout masks come from the step's draws.
Run: tokenloom run smoke_par
Expect: ImageNet 256 FID 2.61 (XL-4x), 2.35 (XXL-4x) in 147 steps instead of 576 (24x24 tokens), near raster's.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.shifted import Registers
from tokenloom.models.parts.orders import Regions
from tokenloom.models.zoo.generators.raster import raster
from tokenloom.models.zoo.published.par import SIZES


@register(
    "par",
    kind="generator",
    paper="2412.15119",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="vq",
    sizes=SIZES,
)
def par(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    across: int = 2,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
) -> GroupGenerator.Config:
    """LlamaGen's transformer of this depth; ``across`` squared tokens a step (2: PAR-4x, 4: PAR-16x)."""
    return replace(
        raster(depth, width, heads, classes, dropout, label_dropout, multiple_of),
        order=Regions(across=across),
        feed=Registers.Config(dropout=dropout, registers=across * across - 1),
    )

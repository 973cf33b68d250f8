"""NFIG: next-frequency image generation (Huang et al. 2025, arXiv:2503.07076).

New: the groups are frequency bands from low to high, on grids that grow with the band, so that global structure comes first
and from few tokens.  It is the transformer of var on the tokenizer nfig, whose scales are cut at frequencies.
Differs: as in nfig; the bands' grids are those of the tokenizer's recipe (the paper has ten bands).
Run: tokenloom run smoke_nfig_ar
Expect: ImageNet 256 FID 2.81 in the paper, 1.25 times as fast as VAR-d20.
"""

from __future__ import annotations

from typing import cast

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.zoo.generators.var import var


@register(
    "nfig_ar",
    kind="generator",
    paper="2503.07076",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="nfig",
)
def nfig_ar(
    depth: int = 20,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """As ``var``: width is 64 times the depth, heads the depth and drop path depth/240 if not given."""
    return cast(GroupGenerator.Config, var(depth, width, heads, classes, drop_path, label_dropout))

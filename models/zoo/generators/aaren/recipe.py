"""Aaren: attention as a recurrent net (Feng et al. 2024, arXiv:2405.13956).

New: the query of attention is a learned constant, so softmax attention over every prefix is one associative scan in training and
an update of (maximum, denominator, numerator) in decoding: memory does not grow with the sequence.
Differs: the paper's tasks are decisions, events and series, here it predicts image codes row by row; the query is learned
directly in the space of the keys; learned positions, because a prefix alone has no order for such attention.
Run: tokenloom run smoke_aaren
Expect: no published number for images; the quality of raster at equal depth is what to compare with.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.zoo.generators._recurrent import one_by_one
from tokenloom.models.zoo.generators.aaren.net import ScanAttention


@register(
    "aaren",
    kind="generator",
    paper="2405.13956",
    tiny={"depth": 2, "width": 32, "heads": 4},
    codec="vq",
)
def aaren(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """Aaren of this depth; width is 64 times the depth and heads the depth if not given."""
    return one_by_one(ScanAttention.Config(heads=heads or depth), depth, width, classes, dropout, label_dropout)

"""NAR: neighbouring autoregressive modelling (He et al. 2025, arXiv:2503.10696).

New: tokens come in order of their Manhattan distance from the first one, a whole anti-diagonal a step.  One head predicts the
neighbour to the right and one, after blocks of its own, that below; where both reach a token their logits are averaged.
Differs: nothing but that dropout masks come from the step's draws.
Run: tokenloom run smoke_nar
Expect: 2n - 1 steps on an n x n grid (31 instead of 256); a lower FID than PAR-4x at 2.4 times its throughput on ImageNet 256 in the paper.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.categorical import Directions
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.orders import Diagonals
from tokenloom.models.zoo.generators.nar.feed import Neighbours
from tokenloom.models.zoo.generators.nar.net import Branched
from tokenloom.models.zoo.generators.raster import raster
from tokenloom.models.zoo.published.nar import SIZES


@register(
    "nar",
    kind="generator",
    paper="2503.10696",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="vq",
    sizes=SIZES,
)
def nar(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    branch: int = 1,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
) -> GroupGenerator.Config:
    """LlamaGen's transformer of this depth, and ``branch`` blocks more for the head of the token below."""
    base = raster(depth, width, heads, classes, dropout, label_dropout, multiple_of)
    assert isinstance(base.net, Transformer.Config)
    return replace(
        base,
        order=Diagonals(),
        feed=Neighbours.Config(dropout=dropout),
        net=Branched.Config(trunk=base.net, branches=(branch,)),
        head=Directions.Config(states=2),
    )

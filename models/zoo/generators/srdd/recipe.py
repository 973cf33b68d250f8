"""SRDD: next-scale prediction as discrete diffusion (Kumar, Nair and Patel 2025, arXiv:2509.22636).

New: with a Markov mask next-scale prediction is a discrete diffusion whose noise is the loss of resolution: each scale is predicted
from the sum so far alone.  What is used there works here too: guidance, refinement (a scale is predicted again from the sum with its likely
tokens in it, and its unlikely ones are drawn anew), and fewer scales from one model (``sample.steps``).
Differs: threshold and number of rounds are our own, and so is leaving the unlikely tokens out of the refined sum (the abstract tells
neither); scales that are left out add nothing, and no scale distillation follows; no size is published.
Run: tokenloom run smoke_srdd
Expect: a lower FID than VAR of equal size at less cost in the paper; no cache outlives a scale, and a round costs a pass a scale.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.zoo.generators.srdd.feed import Refinable
from tokenloom.models.zoo.generators.srdd.head import Refined
from tokenloom.models.zoo.generators.srdd.order import FewerScales
from tokenloom.models.zoo.generators.var import var


@register(
    "srdd",
    kind="generator",
    paper="2509.22636",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="var_vq",
)
def srdd(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    threshold: float = 0.05,
    rounds: int = 1,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """As ``var``; each scale is predicted ``rounds`` times again, and its tokens less likely than ``threshold`` are drawn anew."""
    plain = var(depth, width, heads, classes, drop_path, label_dropout)
    assert isinstance(plain, GroupGenerator.Config)
    head = Refined.Config(bias="yes", threshold=threshold, rounds=rounds)
    return replace(plain, order=FewerScales(), feed=Refinable.Config(), head=head)

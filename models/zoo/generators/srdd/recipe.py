"""SRDD: next-scale prediction as discrete diffusion (Kumar, Nair and Patel 2025, arXiv:2509.22636).

New: with a Markov mask next-scale prediction is a discrete diffusion whose noise is the loss of resolution: each scale is predicted
from the sum so far alone.  What is used there works here too: guidance, drawing tokens of low confidence again, fewer scales.
Differs: tokens are drawn again from the same prediction, which under the Markov mask is that of another pass; fewer scales are those of
the tokenizer (``tokenizer.args.scales``), not cut from a trained model; numbers of rounds and the threshold are our own.
Run: tokenloom run smoke_srdd
Expect: a lower FID than VAR of equal size at less cost in the paper; no cache outlives a scale.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.markov import Markov
from tokenloom.models.parts.orders import Scales
from tokenloom.models.zoo.generators.srdd.head import Resampled
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
    rounds: int = 4,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """As ``var``; tokens less likely than ``threshold`` are drawn again, ``rounds`` times."""
    plain = var(depth, width, heads, classes, drop_path, label_dropout)
    assert isinstance(plain, GroupGenerator.Config)
    return replace(
        plain, order=Scales(window=0), feed=Markov.Config(), head=Resampled.Config(bias="yes", threshold=threshold, rounds=rounds)
    )

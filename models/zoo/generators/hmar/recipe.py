"""HMAR: hierarchical masked autoregression (Kumbong et al. 2025, arXiv:2506.04421).

New: next-scale prediction that is Markov: a scale is given the sum of the smaller ones and attends to no slots but its own, so that
memory is that of one scale; and a scale is drawn in several masked steps.  Each step keeps the tokens that are likeliest and knows those of
the steps before it by their code vectors, under the map that also embeds the sum.
Differs: one net is trained on whole and partly known scales (the paper trains a next-scale model, then copies its last eight blocks and
the head and trains the copies on masked scales), scales weigh by their tokens (the paper's by a normal density of their size), the
guidance ramps over all steps (the paper's over scales, none in masked steps), and the mask is one of torch's attention instead of a
block-sparse kernel.
Run: tokenloom run smoke_hmar
Expect: the FID of VAR or better at equal size on ImageNet 256 and 512 in the paper, with a third of the memory; the steps of a scale
may be changed without training (``sample.steps``, or a cut of each scale in ``generator.set``: ``order.decoding``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.markov import CodedScales
from tokenloom.models.parts.orders import Confidence, Parts
from tokenloom.models.zoo.generators.hmar.order import SteppedScales
from tokenloom.models.zoo.generators.var import var

#: The released schedule: grids of four and nine positions in two and four steps, all others whole; 14 steps of VAR's ten scales.
SCHEDULE = ((1, 3), (1, 1, 2, 5))


@register(
    "hmar",
    kind="generator",
    paper="2506.04421",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="var_vq",
)
def hmar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    schedule: tuple[tuple[int, ...], ...] = SCHEDULE,
    kept: Literal["surest", "random"] = "surest",
    whole: float = 0.5,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
    gamma: float = 1e-2,
) -> GroupGenerator.Config:
    """As ``var``; ``schedule`` cuts the scales in decoding, each step keeping the ``surest`` tokens or ``random`` ones; ``whole`` is the
    share of scales that are trained without known tokens."""
    plain = var(depth, width, heads, classes, drop_path, label_dropout, gamma=gamma)
    choice = Confidence(noise=0.0) if kept == "surest" else None
    order = SteppedScales(whole=whole, decoding=Parts(parts=schedule), choice=choice)
    return replace(plain, order=order, feed=CodedScales.Config())

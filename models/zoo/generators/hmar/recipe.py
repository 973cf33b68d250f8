"""HMAR: hierarchical masked autoregression (Kumbong et al. 2025, arXiv:2506.04421).

New: next-scale prediction that is Markov: a scale is given the sum of the smaller ones and attends to no slots but its own, so that
memory is that of one scale; and a scale is drawn in several masked steps, by a second tower: copies of the last blocks and the head of the
trained next-scale model, trained on masked scales while all else stays.  Each step keeps the likeliest tokens and knows those of the steps
before it by their code vectors, under the map that also embeds the sum.
Differs: both parts are one training whose schedule restarts, instead of two; the density that weighs scales sums to one, and masked shares
follow a cosine (no source says); the guidance ramps over all steps, masked ones too; the mask is one of torch's attention instead of a
block-sparse kernel.
Run: tokenloom run smoke_hmar
Expect: the FID of VAR or better at equal size on ImageNet 256 and 512 in the paper, with a third of the memory; the steps of a scale
may be changed without training (``sample.steps``, or a cut of each scale in ``generator.set``: ``order.decoding``).
"""

from __future__ import annotations

from typing import Literal, cast

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.markov import RefinedScales
from tokenloom.models.parts.orders import Confidence, Parts
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.hmar.module import TwoTowers
from tokenloom.models.zoo.generators.hmar.order import SteppedScales
from tokenloom.models.zoo.generators.var import var
from tokenloom.models.zoo.published.hmar import SIZES

#: The released schedule: grids of four and nine positions in two and four steps, all others whole; 14 steps of VAR's ten scales.
SCHEDULE = ((1, 3), (1, 1, 2, 5))


@register(
    "hmar",
    kind="generator",
    paper="2506.04421",
    tiny={"depth": 2, "width": 32, "heads": 2, "late": 1},
    codec="var_vq",
    sizes=SIZES,
)
def hmar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    late: int = 8,
    schedule: tuple[tuple[int, ...], ...] = SCHEDULE,
    kept: Literal["surest", "random"] = "surest",
    start: float = 2 / 3,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
    gamma: float = 1e-2,
    guidance: float = 1.7,
    top_k: int = 1000,
) -> TwoTowers.Config:
    """As ``var``; the second tower has ``late`` blocks of its own, and is trained from the share ``start`` of the steps on; ``schedule``
    cuts the scales in decoding, each step keeping the ``surest`` tokens or ``random`` ones."""
    plain = cast(GroupGenerator.Config, var(depth, width, heads, classes, drop_path, label_dropout, gamma=gamma))
    choice = Confidence(noise=0.0) if kept == "surest" else None
    return TwoTowers.Config(
        order=SteppedScales(start=start, whole=0.0, decoding=Parts(parts=schedule), choice=choice),
        feed=RefinedScales.Config(),
        net=plain.net,
        head=plain.head,
        condition=plain.condition,
        sampler=Sampler(guidance=Linear(value=guidance), top_k=top_k, top_p=0.99),
        late=late,
    )

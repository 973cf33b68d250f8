"""Heptapod: next 2-D distribution prediction (Zhu et al. 2025, arXiv:2510.06673).

New: a causal transformer predicts at every step the distribution of all positions of the grid that are still to come, so that each state
must hold the whole image, as in masked autoencoding; sampling takes the next position, and needs no guidance.
Differs: a state is combined with the query of a position by a few MLPs, and the next position weighs as much as all later ones together
(neither the paper's abstract nor code tells its head, its weights or its size); discrete codes; with ``targets`` only
so many later positions are drawn for each step, which keeps long sequences affordable.
Run: tokenloom run smoke_heptapod
Expect: ImageNet 256 FID 2.70 without guidance in the paper; here its samples are behind those of raster at
equal compute (docs/leaderboard.md).
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.heptapod.net import QueryHeads
from tokenloom.models.zoo.generators.heptapod.objective import WholeGrid


@register(
    "heptapod",
    kind="generator",
    paper="2510.06673",
    tiny={"depth": 2, "width": 32, "heads": 2, "blocks": 1, "targets": 0, "dropout": 0.0},
    codec="vq",
)
def heptapod(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    blocks: int = 2,
    targets: int = 16,
    later: float = 1.0,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.0,
) -> GroupGenerator.Config:
    """``targets`` later positions a step (0: all); width is 64 times the depth and heads the depth if not given.

    The paper samples without guidance; a run that guides has to train for it, with ``label_dropout``.
    """
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=llama(depth, width, heads, dropout, QueryHeads.Config, blocks=blocks),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=0.0)),
        objective=WholeGrid.Config(later=later, targets=targets),
    )

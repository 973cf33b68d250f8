"""sigma-GPT: any-order autoregression by double positions (Pannatier, Courdier and Fleuret 2024, arXiv:2404.09562).

New: to each token its own position and that of the token to predict are added, so that the order may differ from row to row; any subset
of tokens may be given, and many can be drawn at once: all open positions from what is known, of which those stand that
the model, reading them one after another, would have drawn too.
Differs: learned positions that are added; at the first rejection the token is drawn from what the proposal lacks, so that bursts
with one order give exactly the distribution of one-by-one decoding; bursts use no cache.  Class labels as in raster.
Run: tokenloom run smoke_sigma_gpt
Expect: an order of magnitude fewer model evaluations in bursts at equal quality in the paper; the likelihood of raster at
somewhat more training.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.double_position import DoublePosition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import gpt
from tokenloom.models.parts.orders import Even, Random
from tokenloom.models.sampling.decoders.rejection import Rejection
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.sigma_gpt.module import AnyOrder


@register(
    "sigma_gpt",
    kind="generator",
    paper="2404.09562",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="vq",
)
def sigma_gpt(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    group: int = 1,
    burst: int = 0,
) -> AnyOrder.Config:
    """Width is 64 times the depth, heads the depth if not given; ``group`` tokens a decoding step, or bursts that try ``burst`` orders."""
    return AnyOrder.Config(
        order=Random(decoding=Even(size=group)),
        feed=DoublePosition.Config(dropout=dropout),
        net=gpt(depth, width, heads, dropout),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
        burst=Rejection(orders=burst) if burst else None,
    )

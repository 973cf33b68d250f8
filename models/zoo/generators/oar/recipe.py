"""OAR: ordered autoregression with distilled orders (Pan et al. 2025, arXiv:2504.17069).

New: a model of all orders says where to go next: in each step it draws a token for every open position and keeps the likeliest.  For a
given image the same rule yields an order, and training ends on the images in their own orders.
Differs: orders are found anew for each batch by the model as it is (the paper finds them once, with the model of the first stage),
at a cost of one decoding a batch; the next position is told by an absolute vector, not relative to the present one, and the choice of where
to go heeds likelihood alone, not distance; image tokens instead of patches; no likelihood, since the order is part of the sample.
Run: tokenloom run smoke_oar
Expect: a lower FID than raster order and than any-order at equal training in the paper (Fashion Products, multimodal CelebA-HQ).
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.double_position import DoublePosition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import gpt
from tokenloom.models.parts.orders import Confidence
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.oar.objective import DistilledOrder
from tokenloom.models.zoo.generators.oar.order import ConfidenceOrder


@register(
    "oar",
    kind="generator",
    paper="2504.17069",
    tiny={"depth": 2, "width": 32, "heads": 2, "start": 0.9},
    codec="vq",
)
def oar(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    start: float = 0.7,
    noise: float = 0.0,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """Found orders from the share ``start`` of training on; ``noise`` of the choice; width is 64 times the depth, heads the depth."""
    return GroupGenerator.Config(
        order=ConfidenceOrder(choice=Confidence(noise=noise)),
        feed=DoublePosition.Config(dropout=dropout),
        net=gpt(depth, width, heads, dropout),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
        objective=DistilledOrder.Config(start=start),
    )

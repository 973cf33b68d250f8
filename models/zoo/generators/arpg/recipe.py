"""ARPG: random-order generation with position queries (Li et al. 2025, arXiv:2503.10568).

New: where to predict and what is known are separate inputs.  Causal self-attention over the known tokens gives keys and values once;
queries that hold nothing but a place look at them, never at each other, so any number is predicted at once, in any order.
Differs: dropout masks come from the step's draws; groups of the last token are not fed, which no query would see.
Run: tokenloom run smoke_arpg
Expect: ImageNet 256 FID 2.44 (L), 2.10 (XL), 1.94 (XXL) with 64 steps; the same model decodes in raster order, or fills in an image.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Arccos, Random, Steps
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.arpg.feed import Queried
from tokenloom.models.zoo.generators.arpg.net import TwoPass
from tokenloom.models.zoo.published.arpg import SIZES


@register(
    "arpg",
    kind="generator",
    paper="2503.10568",
    tiny={"depth": 2, "width": 48, "heads": 12, "steps": 5, "dropout": 0.0, "label_dropout": 0.0},
    codec="vq",
    sizes=SIZES,
)
def arpg(
    depth: int = 24,
    width: int = 1024,
    heads: int = 16,
    steps: int = 64,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
    spare: int = 0,
) -> GroupGenerator.Config:
    """ARPG-L by default; half of the blocks read the content and half answer the queries.

    ``spare`` rows of the official table of classes are read by nothing.
    """
    return GroupGenerator.Config(
        order=Random(decoding=Steps(count=steps, curve=Arccos())),
        feed=Queried.Config(dropout=dropout),
        net=TwoPass.Config(content=llama(depth - depth // 2, width, heads, dropout, multiple_of=multiple_of), depth=depth // 2),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout, spare=spare),
        sampler=Sampler(guidance=Linear(value=4.0, clock="after")),
    )

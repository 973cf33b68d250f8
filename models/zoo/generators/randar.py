"""RandAR: decoder-only generation in random orders (Pang et al. 2024, arXiv:2412.01827).

New: before each token stands an instruction, a learned vector rotated by the position that is to be predicted, so that one causal
decoder learns every order; instructions for many places at once decode in parallel with an ordinary cache.
Differs: dropout masks come from the step's draws; with no schedule given it decodes one token a step.
Run: tokenloom run smoke_randar
Expect: ImageNet 256 FID 2.55 (L), 2.25 (XL) in the paper; near-equal quality with several times fewer steps.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds.aimed import PositionInstructions
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Even, Random, Steps
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.published.randar import SIZES


@register(
    "randar",
    kind="generator",
    paper="2412.01827",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": 5},
    codec="vq",
    sizes=SIZES,
)
def randar(
    depth: int = 24,
    width: int = 1024,
    heads: int = 16,
    steps: int | None = 88,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
) -> GroupGenerator.Config:
    """RandAR-L by default; ``steps`` of parallel decoding follow a cosine, None decodes one token a step."""
    return GroupGenerator.Config(
        order=Random(decoding=Steps(count=steps) if steps else Even()),
        feed=PositionInstructions.Config(heads=heads, dropout=dropout),
        net=llama(depth, width, heads, dropout, multiple_of=multiple_of),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=3.0, clock="before")),
    )

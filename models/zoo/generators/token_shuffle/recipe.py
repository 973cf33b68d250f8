"""Token-Shuffle: merged slots for high resolution (Ma et al. 2025, arXiv:2504.17789).

New: the s x s tokens of a window are merged on the channels before the transformer and taken apart after it, so that it processes 1/s^2 as
many slots and predicts s^2 tokens a step, with the vocabulary as it was.
Differs: class labels instead of a text prompt; the tokens of a window are drawn independently of each other given its state, as published.
Run: tokenloom run smoke_token_shuffle
Expect: text to image at 2048 x 2048, GenAI-Bench 0.77 in the paper (s = 2); the quality of raster with a quarter of the slots and steps.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Patches
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.token_shuffle.feed import Merged
from tokenloom.models.zoo.generators.token_shuffle.net import Unshuffled


@register(
    "token_shuffle",
    kind="generator",
    paper="2504.17789",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="vq",
)
def token_shuffle(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    side: int = 2,
    blocks: int = 2,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """Windows of ``side`` x ``side`` tokens; width is 64 times the depth and heads the depth if not given."""
    mlp = SwiGLU.Config(multiple_of=32)
    return GroupGenerator.Config(
        order=Patches(sides=(side,), until=()),
        feed=Merged.Config(dropout=dropout, share=side**2, blocks=blocks, mlp=mlp),
        net=llama(depth, width, heads, dropout, Unshuffled.Config, mlp=mlp, share=side**2, blocks=blocks),
        head=Categorical.Config(),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
    )

"""Raster next-token prediction: LlamaGen (Sun et al. 2024, arXiv:2406.06525).

New: nothing but scale; a plain Llama decoder over image codes, row by row, is enough to beat diffusion.
Differs: dropout masks come from the step's draws; dropout of tokens, residuals and attention output share one rate each.
Run: tokenloom run digits_raster
Expect: class-conditional ImageNet 256 FID 5.46 (B), 3.80 (L), 2.62 (XL) with official weights; on digits see docs/results.md.
"""

from __future__ import annotations

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditioners.text_features import TextCondition
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import llama
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.published.llamagen import SIZES


@register(
    "raster",
    kind="generator",
    paper="2406.06525",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="vq",
    sizes=SIZES,
)
def raster(
    depth: int = 12,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    dropout: float = 0.1,
    label_dropout: float = 0.1,
    multiple_of: int = 32,
    text: int = 0,
    length: int | None = None,
    encoder: str = "",
) -> GroupGenerator.Config:
    """LlamaGen of this depth; width is 64 times the depth and heads the depth if not given; MLPs have multiples of 256 as published.

    ``text`` conditions on captions instead of classes: the width of the features that the text model ``encoder`` (a folder or hub name)
    makes of them, as ``length`` prefix slots (120).
    """
    condition: Conditioner.Config = ClassCondition.Config(classes=classes, dropout=label_dropout)
    if text:
        condition = TextCondition.Config(features=text, length=length or 120, dropout=label_dropout, encoder=encoder)
    elif length is not None or encoder:
        raise ConfigError(f"length={length}, encoder={encoder!r}: are those of the text's features, give text (their width) too")
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=llama(depth, width, heads, dropout, multiple_of=multiple_of),
        head=Categorical.Config(bias="no"),
        condition=condition,
        sampler=Sampler(guidance=Constant(value=1.0)),
    )

"""HMAR: hierarchical masked autoregression (Kumbong et al. 2025, arXiv:2506.04421).

New: next-scale prediction that is Markov: a scale is given the sum of the smaller ones and attends to no slots but its own, so that
memory is that of one scale; and a scale is drawn in several masked steps, each of which knows what the steps before it drew.
Differs: one net is trained on whole and partly known scales (the paper adds a small masked net to the states of the trunk and trains it
afterwards), scales weigh by their tokens, and the mask is one of torch's attention instead of a block-sparse kernel.
Run: tokenloom run smoke_hmar
Expect: the FID of VAR or better at equal size on ImageNet 256 and 512 in the paper, with a third of the memory; the steps of a scale
may be changed without training (``sample.steps``).
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.markov import MaskedScales
from tokenloom.models.zoo.generators.hmar.order import SteppedScales
from tokenloom.models.zoo.generators.var import var


@register(
    "hmar",
    kind="generator",
    paper="2506.04421",
    tiny={"depth": 2, "width": 32, "heads": 2, "steps": [1, 2, 3]},
    codec="var_vq",
)
def hmar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    steps: tuple[int, ...] = (1, 1, 1, 2, 2, 2, 3, 3, 4, 4),
    whole: float = 0.5,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """As ``var``; ``steps`` of each scale in decoding, ``whole`` is the share of scales that are trained without known tokens."""
    plain = var(depth, width, heads, classes, drop_path, label_dropout)
    assert isinstance(plain, GroupGenerator.Config)
    return replace(plain, order=SteppedScales(steps=steps, whole=whole), feed=MaskedScales.Config())

"""FlexVAR: next-scale prediction without residuals (Jiao et al. 2025, arXiv:2502.20313).

New: each scale is a whole image, not a correction of the smaller ones, and positions are a map resized to any grid.  Training draws a
sequence of grids for each batch, so one model takes other numbers of steps (``sample.steps``), and other resolutions and aspect ratios
(``GroupGenerator.on``).
Differs: sequences are drawn among the grids that the tokenizer stores, which should be of all sides (``scales: [1, 2, …, 16]``, as the
published size has them): the released code codes the image anew in each step, under a random crop.
Run: tokenloom run smoke_flexvar
Expect: ImageNet 256 FID 3.05 (d16), 2.41 (d20), 2.21 (d24) with 10 steps and 2.08 with 13 steps of the same model.
"""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.flexvar.feed import FlexibleScale
from tokenloom.models.zoo.generators.flexvar.order import DrawnScales
from tokenloom.models.zoo.generators.var import var
from tokenloom.models.zoo.published.flexvar import SIZES


@register(
    "flexvar",
    kind="generator",
    paper="2502.20313",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="flexvar_vq",
    sizes=SIZES,
)
def flexvar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    most: int = 680,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
    gamma: float = 1e-2,
) -> GroupGenerator.Config:
    """VAR's transformer of this depth; a training sequence has at most ``most`` positions."""
    return replace(
        var(depth, width, heads, classes, drop_path, label_dropout, gamma=gamma),
        order=DrawnScales(most=most),
        feed=FlexibleScale.Config(),
        sampler=Sampler(guidance=Linear(value=2.5), top_k=900, top_p=0.95),
    )

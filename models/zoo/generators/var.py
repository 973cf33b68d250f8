"""VAR: visual autoregressive modelling by next-scale prediction (Tian et al. 2024, arXiv:2404.02905).

New: a group is a whole scale of a multi-scale residual VQ, so an image takes as many steps as it has scales.
Differs: drop path and label dropout come from the step's draws; initial gammas of 0.01 suit small nets.
Run: tokenloom run digits_var
Expect: ImageNet 256 FID 3.55 (d16), 2.95 (d20), 2.33 (d24) with official weights; on digits see docs/results.md.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import NextScale
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets import blocks
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Scales
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.published.var import SIZES


@register(
    "var",
    kind="generator",
    paper="2404.02905",
    tiny={"depth": 2, "width": 32, "heads": 2},
    codec="var_vq",
    sizes=SIZES,
)
def var(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
    adaln: Literal["own", "shared"] = "own",
    gamma: float = 1e-2,
) -> GroupGenerator.Config:
    """VAR of this depth; width is 64 times the depth, heads the depth and drop path depth/240 if not given.

    ``adaln``: a modulation map a block, or one for all (d36); ``gamma``: size of the initial gammas of the blocks.
    """
    return GroupGenerator.Config(
        order=Scales(),
        feed=NextScale.Config(),
        net=blocks.var(
            depth,
            width,
            heads,
            drop_path,
            Transformer.Config,
            init=Init(std=0.0, scale_residual=True),
            norm=AdaLN.Config(sharing=adaln, gamma=gamma),
        ),
        head=Categorical.Config(bias="yes", init_std=0.0),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=1.5), top_k=900, top_p=0.96),
    )

"""M-VAR: next-scale prediction with attention inside scales and Mamba between them (Ren et al. 2024, arXiv:2411.10433).

New: what VAR's attention does over all scales is split: full attention within a scale, and a linear-time scan over all of them.
Differs: Mamba-1 instead of Mamba-2 between scales; decoding carries the scan's state from scale to scale (the published code
runs the scan over all earlier scales again), and attention needs no cache at all.
Run: tokenloom run smoke_mvar
Expect: ImageNet 256 FID 1.78 (d32) in the paper; the quality of var at equal depth and less time at high resolution.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import NextScale
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import var
from tokenloom.models.parts.nets.mamba import Selective
from tokenloom.models.parts.orders import Scales
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.mvar.net import ScaleNet


@register(
    "mvar",
    kind="generator",
    paper="2411.10433",
    tiny={"depth": 2, "width": 32, "heads": 2, "states": 4},
    codec="var_vq",
)
def mvar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    states: int = 16,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """M-VAR of this depth; width is 64 times the depth, heads the depth and drop path depth/240 if not given."""
    return GroupGenerator.Config(
        order=Scales(),
        feed=NextScale.Config(),
        net=var(depth, width, heads, drop_path, ScaleNet.Config, mixer=Selective.Config(states=states)),
        head=Categorical.Config(bias="yes", init_std=0.0),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=1.5), top_k=900, top_p=0.96),
    )

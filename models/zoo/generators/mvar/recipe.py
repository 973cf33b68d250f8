"""M-VAR: next-scale prediction with attention inside scales and Mamba between them (Ren et al. 2024, arXiv:2411.10433).

New: what VAR's attention does over all scales is split: full attention within a scale, and a linear-time scan (Mamba-2 of 64 states,
arXiv:2405.21060) over all of them.
Differs: decoding carries the scan's state from scale to scale (the released code runs the scan over all earlier scales again), and
attention needs no cache at all.
Run: tokenloom run smoke_mvar
Expect: ImageNet 256 FID 1.78 (d32) in the paper.  A block has a third branch, so at equal depth it has 1.5 times VAR's parameters and costs
more; what is cheaper is equal quality with fewer blocks, and a sequence of many scales, over which only the scan goes.
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import NextScale
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.blocks import var
from tokenloom.models.parts.nets.mamba2 import Dual
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.orders import Scales
from tokenloom.models.parts.similarity import CosineSimilarity, Scaled
from tokenloom.models.sampling.sampler import Linear, Sampler
from tokenloom.models.zoo.generators.mvar.net import ScaleNet
from tokenloom.models.zoo.generators.mvar.sizes import SIZES


@register(
    "mvar",
    kind="generator",
    paper="2411.10433",
    tiny={"depth": 2, "width": 32, "heads": 2, "states": 4, "head_width": 16},
    codec="var_vq",
    sizes=SIZES,
)
def mvar(
    depth: int = 16,
    width: int | None = None,
    heads: int | None = None,
    states: int = 64,
    head_width: int = 64,
    classes: int | None = None,
    drop_path: float | None = None,
    label_dropout: float = 0.1,
    attention: Literal["cosine", "scaled"] = "cosine",
    gamma: float = 1e-2,
) -> GroupGenerator.Config:
    """M-VAR of this depth; width is 64 times the depth, heads the depth and drop path depth/240 if not given.

    ``attention`` by cosines, or (d16, d20) by dot products times a quarter of the usual factor; ``gamma``: size of the initial gammas.
    """
    similarity = CosineSimilarity() if attention == "cosine" else Scaled(gain=0.25)
    return GroupGenerator.Config(
        order=Scales(),
        feed=NextScale.Config(),
        net=var(
            depth,
            width,
            heads,
            drop_path,
            ScaleNet.Config,
            mixer=Dual.Config(states=states, head_width=head_width),
            norm=AdaLN.Config(gamma=gamma),
            attention=Attention.Config(similarity=similarity, bias="qv"),
        ),
        head=Categorical.Config(bias="yes", init_std=0.0),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Linear(value=1.5), top_k=900, top_p=0.96),
    )

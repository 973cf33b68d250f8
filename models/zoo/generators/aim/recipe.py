"""AiM: raster next-token prediction with Mamba instead of a transformer (Li et al. 2024, arXiv:2408.12245).

New: a selective state space (arXiv:2312.00752) mixes the sequence, so decoding keeps a state of fixed size instead of a growing
cache; adaLN-group: blocks take turns over four maps of the condition.
Differs: Mamba-1 blocks with S4D-real rates (the released weights hold Mamba-2 ones); norms have no weights besides the condition's;
the scan runs in plain torch wherever mamba_ssm is missing.
Run: tokenloom run smoke_aim
Expect: ImageNet 256 FID 3.52 (B, depth 24, width 768), 2.83 (L, 48, 1024), 2.56 (XL, 48, 1536) in the paper.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.nets.mamba import Selective
from tokenloom.models.parts.nets.sequence import SequenceNet
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.aim.norm import GroupAdaLN


@register(
    "aim",
    kind="generator",
    paper="2408.12245",
    tiny={"depth": 2, "width": 32, "states": 4},
    codec="vq",
)
def aim(
    depth: int = 24,
    width: int | None = None,
    states: int = 16,
    groups: int = 4,
    classes: int | None = None,
    dropout: float = 0.0,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """AiM of this depth; width is 32 times the depth if not given."""
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=SequenceNet.Config(
            width=width or 32 * depth,
            depth=depth,
            mixer=Selective.Config(states=states),
            norm=GroupAdaLN.Config(groups=groups),
            dropout=dropout,
        ),
        head=Categorical.Config(bias="no"),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
    )

"""AiM: raster next-token prediction with Mamba instead of a transformer (Li et al. 2024, arXiv:2408.12245).

New: a selective state space mixes the sequence, so decoding keeps a state of fixed size instead of a growing cache.  Blocks are Mamba-2
mixers alone (arXiv:2405.21060), modulated by the class: each by a map of its own (B), or in turns by four (L, XL: adaLN-group); the
output map is the table of token embeddings.
Differs: the scan runs in plain torch, chunk by chunk, instead of in fused kernels.
Run: tokenloom run smoke_aim
Expect: ImageNet 256 FID 3.52 (B), 2.83 (L), 2.56 (XL) in the paper.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Tied
from tokenloom.models.parts.nets.mamba2 import Dual
from tokenloom.models.parts.nets.sequence import SequenceNet
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.zoo.generators.aim.norm import RMSAdaLN
from tokenloom.models.zoo.generators.aim.sizes import SIZES


@register(
    "aim",
    kind="generator",
    paper="2408.12245",
    tiny={"depth": 2, "width": 32, "states": 4, "head_width": 16, "maps": 2},
    codec="vq",
    sizes=SIZES,
)
def aim(
    depth: int = 24,
    width: int | None = None,
    states: int = 128,
    head_width: int = 64,
    maps: int = 0,
    classes: int | None = None,
    dropout: float = 0.0,
    label_dropout: float = 0.1,
) -> GroupGenerator.Config:
    """AiM of this depth; width is 32 times the depth if not given; ``maps`` that blocks share (0: one a block)."""
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=SequenceNet.Config(
            width=width or 32 * depth,
            depth=depth,
            mixer=Dual.Config(states=states, head_width=head_width),
            norm=RMSAdaLN.Config(maps=maps),
            dropout=dropout,
            spare=1,
        ),
        head=Tied.Config(bias="no"),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
    )

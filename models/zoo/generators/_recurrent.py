"""What recipes share that predict codes one after another by a net with a recurrent form."""

from __future__ import annotations

from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import ClassCondition
from tokenloom.models.parts.feeds import Shifted
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.sequence import Mixer, SequenceNet
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.orders import Raster
from tokenloom.models.sampling.sampler import Constant, Sampler


def one_by_one(
    mixer: Mixer.Config, depth: int, width: int | None, classes: int | None, dropout: float, label_dropout: float
) -> GroupGenerator.Config:
    """Codes row by row through pre-norm blocks around a mixer; width is 64 times the depth if not given."""
    net = SequenceNet.Config(
        width=width or 64 * depth, depth=depth, mixer=mixer, norm=PreNorm.Config(kind="layer"), mlp=GELU.Config(), dropout=dropout
    )
    return GroupGenerator.Config(
        order=Raster(),
        feed=Shifted.Config(dropout=dropout),
        net=net,
        head=Categorical.Config(bias="no"),
        condition=ClassCondition.Config(classes=classes, dropout=label_dropout),
        sampler=Sampler(guidance=Constant(value=1.0)),
    )

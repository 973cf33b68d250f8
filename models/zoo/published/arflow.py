"""Published sizes of ARFlow (arXiv:2501.16085; TheFllood/ARFlow)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

_TRAINING = Training(
    settings=TrainSettings(epochs=1400, batch=256, optimizer=OptimizerSettings(lr=1e-4, weight_decay=0.0, clip=3.0, schedule="constant")),
    unknown=("batch", "optimizer.lr"),
    departs=("no source here says the rate, the batch, warm-up or the average of the weights",),
)


def _size(name: str, depth: int, width: int, heads: int, parameters: int) -> Size:
    return Size(
        name=name,
        published=f"ARFlow-{name}/2",
        args={"depth": depth, "width": width, "heads": heads, "patch": 2, "outputs": "twice"},
        parameters=parameters,
        excludes="counts the fixed positions",
        fixed=("position",),
        layout=TokenLayout(grids=((32, 32),), channels=4),
        codec=codecs.KL,
        training=_TRAINING,
    )


ARFLOW = (
    _size("S", 12, 384, 6, 34_742_048),
    _size("B", 12, 768, 12, 137_664_032),
    _size("L", 24, 1024, 16, 483_563_552),
    _size("XL", 28, 1152, 18, 712_740_128),
)

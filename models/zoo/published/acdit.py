"""Published sizes of ACDiT (arXiv:2412.07720; thunlp/ACDiT)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

#: Latents of 4 channels in patches of 2x2.
_LATENTS = TokenLayout(grids=((32, 32),), channels=16)
_TRAINING = Training(
    settings=TrainSettings(
        epochs=1400,
        batch=256,
        optimizer=OptimizerSettings(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, clip=1.0, warmup=0.0, schedule="constant"),
    ),
    departs=("no source here says warm-up, schedule, average of the weights or precision: none, constant, none and float32",),
)


def _size(name: str, depth: int, width: int, parameters: int) -> Size:
    return Size(
        name=name,
        published=f"ACDiT-{name}",
        args={"depth": depth, "width": width, "heads": width // 64},
        parameters=parameters,
        layout=_LATENTS,
        image=512,
        codec=codecs.KL,
        training=_TRAINING,
    )


ACDIT = (
    _size("B", 12, 768, 130_323_472),
    _size("L", 24, 1024, 457_876_496),
    _size("XL", 28, 1152, 674_884_368),
    _size("H", 32, 1280, 950_990_352),
)

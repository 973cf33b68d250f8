"""Published sizes of FAR by frequencies (arXiv:2503.05305; yuhuUSTC/FAR)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

_TRAINING = Training(
    settings=TrainSettings(
        epochs=400,
        batch=2048,
        precision="bfloat16",
        ema=0.9999,
        optimizer=OptimizerSettings(
            lr=8e-4, betas=(0.9, 0.95), weight_decay=0.02, exempt=("vectors", "head."), clip=3.0, warmup=100 / 400, schedule="constant"
        ),
    ),
    lr_batch=2048,
    augmentation=("centre crop", "flip"),
    departs=("float16 is bfloat16 here", "no dropout of attention weights"),
)


def _size(name: str, depth: int, width: int, heads: int, head_depth: int, parameters: int, fid: float) -> Size:
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": heads, "head_depth": head_depth},
        parameters=parameters,
        layout=TokenLayout(grids=((16, 16),), channels=16),
        codec=codecs.KL,
        headline=f"FID {fid}",
        training=_TRAINING,
    )


FAR_FREQUENCY = (
    _size("B", 12, 768, 12, 6, 207_926_816, 4.83),
    _size("L", 16, 1024, 16, 3, 426_359_840, 3.92),
    _size("H", 20, 1280, 16, 3, 811_722_272, 3.71),
)

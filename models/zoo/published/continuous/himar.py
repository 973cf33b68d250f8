"""Published sizes of Hi-MAR (arXiv:2505.20288; HiDream-ai/himar)."""

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
    unknown=("batch",),
    augmentation=("centre crop", "flip"),
    departs=(
        "float16 is bfloat16 here",
        "no dropout of attention weights",
        "betas, what is exempt from decay and augmentation are MAR's, whose other values it shares",
    ),
)


def _size(
    name: str,
    half: tuple[int, int, int],
    head: tuple[int, int],
    dense: tuple[int, int, int],
    parameters: int,
    scales: tuple[float, float],
    rounds: int,
    fid: float,
) -> Size:
    args = dict(zip(("depth", "width", "heads"), half)) | dict(zip(("head_depth", "head_width"), head))
    args |= dict(zip(("dense_depth", "dense_width", "dense_heads"), dense)) | {"rounds": rounds}
    return Size(
        name=name,
        args=args | {"guidance": scales[0] - 1, "pivot_guidance": scales[1] - 1},
        parameters=parameters,
        layout=TokenLayout(grids=((8, 8), (16, 16)), channels=16),
        codec=codecs.KL_PIVOTS,
        headline=f"FID {fid}",
        training=_TRAINING,
    )


HIMAR = (
    _size("B", (12, 768, 12), (6, 1024), (6, 512, 8), 244_468_016, (2.5, 2.7), 4, 1.93),
    _size("L", (16, 1024, 16), (8, 1280), (8, 512, 8), 529_228_336, (3.5, 3.5), 4, 1.66),
    _size("H", (20, 1280, 16), (12, 1536), (12, 768, 12), 1_090_572_592, (3.2, 5.5), 12, 1.52),
)

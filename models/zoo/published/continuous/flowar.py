"""Published sizes of FlowAR (arXiv:2412.15205; wangqiang9/FlowAR)."""

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
        optimizer=OptimizerSettings(lr=4e-4, betas=(0.9, 0.95), weight_decay=0.02, clip=3.0, warmup=100 / 400, schedule="constant"),
    ),
    lr_batch=2048,
    augmentation=("centre crop", "flip"),
    departs=(
        "float16 is bfloat16 here",
        "betas, decay, clip and the average of the weights are MAR's, on whose training code that of FlowAR is built",
    ),
)


def _size(
    name: str, depth: int, width: int, heads: int, head: tuple[int, int], guidance: tuple[float, float], steps: int, fid: float
) -> Size:
    return Size(
        name=name,
        args={
            **{"depth": depth, "width": width, "heads": heads, "head_depth": head[0], "head_width": head[1], "head_heads": head[1] // 64},
            **{"side": 16, "draw_steps": steps, "guidance": guidance[0] - 1, "guided": 1 - guidance[1]},
        },
        parameters=None,
        mark="unknown",
        layout=TokenLayout(grids=((1, 1), (2, 2), (4, 4), (8, 8), (16, 16)), channels=16),
        codec=codecs.KL_SCALES,
        excludes="no exact number is published; of L and H the attention to the states, which is not here, besides",
        headline=f"FID {fid}",
        training=_TRAINING,
    )


FLOWAR = (
    _size("S", 6, 768, 12, (2, 1024), (4.3, 0.9), 25, 3.61),
    _size("L", 8, 1024, 16, (12, 1024), (2.4, 0.9), 25, 1.90),
    _size("H", 15, 1536, 16, (12, 1536), (2.4, 0.7), 50, 1.65),
)

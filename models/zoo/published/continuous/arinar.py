"""Published size of ARINAR (arXiv:2503.02883; Qinyu-Allen-Zhao/Arinar)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

ARINAR = (
    Size(
        name="B",
        args={"depth": 14, "width": 768, "heads": 12},
        parameters=212_949_516,
        layout=TokenLayout(grids=((16, 16),), channels=16),
        codec=codecs.KL,
        headline="FID 2.75",
        training=Training(
            settings=TrainSettings(
                epochs=400,
                batch=256,
                precision="bfloat16",
                ema=0.9999,
                optimizer=OptimizerSettings(
                    lr=1e-4, betas=(0.9, 0.95), weight_decay=0.02, exempt=("vectors",), clip=3.0, warmup=100 / 400, schedule="constant"
                ),
            ),
            lr_batch=256,
            augmentation=("centre crop", "flip"),
            departs=("float16 is bfloat16 here", "no dropout of attention weights"),
        ),
    ),
)

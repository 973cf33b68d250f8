"""Published size of STARFlow (arXiv:2506.06276; apple/ml-starflow)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

STARFLOW = (
    Size(
        name="3B",
        published="STARFlow 3B text-to-image 256",
        args={"width": 3072, "depth": 24, "shallow": [2, 2, 2, 2, 2], "head_width": 64, "features": 2048, "length": 128},
        parameters=3_858_281_544,
        layout=TokenLayout(grids=((32, 32),), channels=4),
        codec=codecs.KL,
        training=Training(
            settings=TrainSettings(
                steps=1, batch=1024, precision="bfloat16", optimizer=OptimizerSettings(lr=6.4e-5, schedule="cosine", final=1e-6 / 6.4e-5)
            ),
            unknown=("steps",),
            departs=("no source here says steps, betas, decay, clip or precision: they are this project's own",),
        ),
    ),
)

"""Published sizes of IBQ's generators (arXiv:2412.02692; TencentARC/IBQ-AR)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import var

#: Dial: depth (which is the number of heads, and a 64th of the width), parameters, epochs, FID, and the sampler's guidance and temperature.
_TABLE = {
    "B": (16, 342_994_944, 300, 2.88, 1.25, 1.1),
    "L": (20, 649_640_960, 350, 2.45, 1.0, 1.0),
    "XL": (24, 1_076_103_168, 400, 2.14, 1.35, 1.15),
    "XXL": (30, 2_063_331_840, 450, 2.05, 1.85, 1.2),
}


def _size(name: str) -> Size:
    depth, parameters, epochs, fid, guidance, temperature = _TABLE[name]
    return Size(
        name=name,
        args={"depth": depth, "gamma": var.gamma(depth), "multiple_of": 256, "guidance": guidance, "temperature": temperature},
        parameters=parameters,
        layout=grid(16, 16384),
        codec=("ibq", {"size": "IBQ 16384"}),
        checkpoints=(f"AR_256_{name}.ckpt",),
        headline=f"FID {fid}",
        training=Training(
            settings=TrainSettings(
                epochs=epochs,
                batch=768,
                precision="bfloat16",
                optimizer=OptimizerSettings(
                    lr=3e-4,
                    weight_decay_end=0.08 if depth >= 30 else None,
                    exempt=(),  # the official schedule of the decay overwrites that of vectors too
                    warmup=1 / 50,
                    warmup_from=0.005,
                    hold=0.05,
                    schedule="linear",
                    final=0.01 if depth >= 24 else 0.1,
                ),
            ),
            lr_batch=768,
            augmentation=("shorter side to 256", "random crop"),
            departs=("float16 with a loss scale is bfloat16 here", "images are tokenized once, not in every step under a random crop"),
        ),
    )


SIZES = tuple(_size(name) for name in _TABLE)

"""Published sizes of AiM (arXiv:2408.12245; hp-l33/AiM)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

TRAINING = Training(
    settings=TrainSettings(
        epochs=350,
        batch=2048,
        precision="bfloat16",
        optimizer=OptimizerSettings(lr=8e-4, exempt=("vectors",), warmup=0.0, schedule="linear", final=0.0),
    ),
    lr_batch=2048,
    augmentation=("shorter side to 1.125 of the size", "random crop"),
    departs=("the documented command is that of XL; the other sizes' are not stated", "images are tokenized once, not under a random crop"),
)
#: Dial: (depth, width, maps that blocks share), parameters, FID, name of the weights.
_TABLE = {
    "B": ((24, 768, 0), 147_622_080, 3.52, "aim-base"),
    "L": ((48, 1024, 4), 349_760_000, 2.83, "aim-large"),
    "XL": ((48, 1536, 4), 763_291_392, 2.56, "aim-xlarge"),
}
SIZES = tuple(
    Size(
        name=name,
        args={"depth": depth, "width": width, "maps": maps},
        parameters=parameters,
        layout=grid(16, 16384),
        codec=codecs.LLAMAGEN,
        checkpoints=(f"hp-l33/{weights}",),
        headline=f"FID {fid}",
        training=TRAINING,
    )
    for name, ((depth, width, maps), parameters, fid, weights) in _TABLE.items()
)

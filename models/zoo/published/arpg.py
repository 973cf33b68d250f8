"""Published sizes of ARPG (arXiv:2503.10568; hp-l33/ARPG)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

#: Of the L model; the other sizes' are not stated.
TRAINING = Training(
    settings=TrainSettings(
        epochs=400,
        batch=1024,
        precision="bfloat16",
        optimizer=OptimizerSettings(lr=4e-4, exempt=("vectors",), warmup=100 / 400, schedule="cosine", final=1e-5 / 4e-4),
    ),
    lr_batch=1024,
    augmentation=("centre crop", "flip"),
)


def _size(name: str, depth: int, width: int, heads: int, parameters: int, fid: float, file: str) -> Size:
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": heads, "multiple_of": 256, "spare": 1},
        parameters=parameters,
        layout=grid(16, 16384),
        codec=codecs.LLAMAGEN,
        checkpoints=(file, "vq_ds16_c2i.pt"),
        headline=f"FID {fid}",
        training=TRAINING if name == "L" else None,
    )


SIZES = (
    _size("L", 24, 1024, 16, 319_845_376, 2.44, "arpg_300m.pt"),
    _size("XL", 36, 1280, 20, 718_997_760, 2.10, "arpg_700m.pt"),
    _size("XXL", 48, 1536, 24, 1_302_449_664, 1.94, "arpg_1b.pt"),
)

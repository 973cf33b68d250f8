"""Published sizes of RandAR (arXiv:2412.01827; ziqipang/RandAR)."""

from __future__ import annotations

from tokenloom.models.core.published import Mark, Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

TRAINING = Training(
    settings=TrainSettings(
        steps=360_000,
        batch=1024,
        precision="bfloat16",
        optimizer=OptimizerSettings(lr=4e-4, exempt=("vectors",), warmup=50_000 / 360_000, schedule="cosine", final=0.05),
    ),
    lr_batch=1024,
    augmentation=("centre crop", "flip"),
    departs=("no step is left out where the gradient is large",),
)


def _size(name: str, depth: int, width: int, heads: int, parameters: int, fid: float | None, maskgit: bool = False) -> Size:
    key = f"{name}-{'maskgit' if maskgit else 'llamagen'}"
    billions = {"L": "0.3b", "XL": "0.7b"}.get(name)
    mark: Mark = "code" if billions else "unknown"
    return Size(
        name=key if maskgit else name,
        published=key,
        args={"depth": depth, "width": width, "heads": heads, "multiple_of": 256},
        parameters=parameters,
        mark=mark,
        layout=grid(16, 1024 if maskgit else 16384),
        codec=codecs.MASKGIT if maskgit else codecs.LLAMAGEN,
        checkpoints=(f"randar_{billions}_{key.split('-')[1]}_360k_bs_1024_lr_0.0004.safetensors",) if billions else (),
        headline=f"FID {fid}" if fid else "",
        training=TRAINING if billions else None,
    )


SIZES = (
    _size("L", 24, 1024, 16, 342_912_000, 2.65),
    _size("L", 24, 1024, 16, 311_454_720, 2.47, maskgit=True),
    _size("XL", 36, 1280, 20, 774_700_800, 2.27),
    _size("XXL", 48, 1536, 24, 1_410_974_208, None),
)

"""Published sizes of MAR (arXiv:2406.11838; LTH14/mar) and of EAR (arXiv:2505.07812; shaochenze/EAR, no weights)."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

_LATENTS = TokenLayout(grids=((16, 16),), channels=16)


def _training(exempt: tuple[str, ...], departs: tuple[str, ...] = ()) -> Training:
    return Training(
        settings=TrainSettings(
            epochs=800,
            batch=2048,
            precision="bfloat16",
            ema=0.9999,
            optimizer=OptimizerSettings(
                lr=8e-4, betas=(0.9, 0.95), weight_decay=0.02, exempt=exempt, clip=3.0, warmup=100 / 800, schedule="constant"
            ),
        ),
        lr_batch=2048,
        augmentation=("centre crop", "flip"),
        departs=("float16 is bfloat16 here", "no dropout of attention weights", *departs),
    )


def _size(name: str, args: dict[str, Any], parameters: int, training: Training, fid: float | None, checkpoint: str = "") -> Size:
    return Size(
        name=name,
        args=args,
        parameters=parameters,
        layout=_LATENTS,
        codec=codecs.KL,
        checkpoints=(checkpoint, "kl16.ckpt") if checkpoint else (),
        headline=f"FID {fid}" if fid else "",
        training=training,
    )


def _mar(name: str, file: str, size: tuple[int, int, int, int, int], parameters: int, scale: float, fid: float) -> Size:
    args = dict(zip(("depth", "width", "heads", "head_depth", "head_width"), size)) | {"steps": 256, "guidance": scale - 1}
    return _size(name, args, parameters, _training(("vectors", "head.")), fid, f"mar_{file}/checkpoint-last.pth")


def _ear(name: str, size: tuple[int, int, int, int, int], parameters: int, fid: float | None) -> Size:
    args = dict(zip(("depth", "width", "heads", "head_depth", "head_width"), size))
    last = ("the head's rate is not a quarter", "the last 50 epochs weigh the spread as before")
    return _size(name, args, parameters, _training(("vectors", "head."), last), fid)


MAR = (
    _mar("B", "base", (12, 768, 12, 6, 1024), 207_924_768, 2.9, 2.31),
    _mar("L", "large", (16, 1024, 16, 8, 1280), 478_326_304, 3.0, 1.78),
    _mar("H", "huge", (20, 1280, 16, 12, 1536), 942_403_104, 3.2, 1.55),
)
EAR = (
    _ear("B", (24, 768, 12, 6, 1024), 205_608_720, None),
    _ear("L", (32, 1024, 16, 8, 1280), 474_755_088, None),
    _ear("H", (40, 1280, 16, 12, 1536), 937_314_576, 1.97),
)

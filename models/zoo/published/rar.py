"""Published sizes of RAR (arXiv:2411.00776; bytedance/1d-tokenizer, yucornetto/RAR)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

TRAINING = Training(
    settings=TrainSettings(
        epochs=400,  # 250,000 steps
        batch=2048,
        precision="bfloat16",
        optimizer=OptimizerSettings(
            lr=4e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            exempt=("vectors", "feed.", "condition.", "net.norm.branches", "net.norm.final"),
            warmup=0.25,
            schedule="cosine",
            final=1e-5 / 4e-4,
        ),
    ),
    lr_batch=2048,
    augmentation=("ten-crop",),
    departs=("no dropout of attention weights",),
)


def _size(name: str, depth: int, width: int, parameters: int, fid: float, hidden: int | None = None) -> Size:
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": 16, "spare": [1, 1022, 99]} | ({"mlp_ratio": hidden / width} if hidden else {}),
        parameters=parameters,
        layout=grid(16, 1024),
        codec=codecs.MASKGIT,
        checkpoints=(f"rar_{name.lower()}.bin", "maskgit-vqgan-imagenet-f16-256.bin"),
        headline=f"FID {fid}",
        training=TRAINING,
    )


SIZES = (
    _size("B", 24, 768, 260_923_648, 1.95),
    _size("L", 24, 1024, 461_668_352, 1.70),
    _size("XL", 32, 1280, 955_425_024, 1.50),
    _size("XXL", 40, 1408, 1_498_520_704, 1.48, hidden=6144),
)

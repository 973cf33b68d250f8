"""Published sizes of xAR (arXiv:2502.20388; OliverRensu/xAR)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

_TRAINING = Training(
    settings=TrainSettings(
        epochs=800,
        batch=2048,
        precision="bfloat16",
        ema=0.9999,
        optimizer=OptimizerSettings(
            lr=4e-4,
            betas=(0.9, 0.96),
            weight_decay=0.02,
            exempt=("vectors",),
            clip=1.0,
            warmup=100 / 800,
            hold=500 / 800,
            schedule="cosine",
            final=1e-5 / 4e-4,
        ),
    ),
    lr_batch=2048,
    augmentation=("centre crop", "flip"),
    departs=("float16 is bfloat16 here", "no dropout of attention weights"),
)


def _size(name: str, depth: int, width: int, heads: int, parameters: int, scale: float, draw_steps: int, headline: str = "") -> Size:
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": heads, "guidance": scale - 1, "draw_steps": draw_steps},
        parameters=parameters,
        layout=TokenLayout(grids=((16, 16),), channels=16),
        codec=codecs.KL,
        checkpoints=(f"xAR-{name}.pth", "kl16.ckpt"),
        headline=headline,
        training=_TRAINING,
    )


XAR = (
    _size("B", 8, 768, 12, 172_638_224, 2.7, 40),
    _size("L", 16, 1024, 16, 608_397_968, 2.3, 50),
    _size("H", 20, 1280, 16, 1_186_024_096, 2.2, 50, "FID 1.24"),
)

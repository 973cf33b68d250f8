"""Published sizes of TokenBridge's generators (arXiv:2503.16430; Epiphqny/TokenBridge)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

#: The channels as the released models predict them.
CHANNELS = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)


def _size(name: str, depth: int, width: int, heads: int, inner: int, parameters: int, fid: float | None, epochs: int | None) -> Size:
    return Size(
        name=name,
        args={
            "depth": depth,
            "width": width,
            "heads": heads,
            "inner": inner,
            "inner_width": min(width, 1024),
            "steps": 256,
            "channel_order": list(CHANNELS),
        },
        parameters=parameters,
        layout=grid(16, 64, codebooks=16),
        codec=codecs.TOKENBRIDGE,
        checkpoints=(f"tokenbridge_{'large' if name == 'L' else 'huge'}/checkpoint-last.pth", "kl16.ckpt") if fid else (),
        headline=f"FID {fid}" if fid else "",
        training=Training(
            settings=TrainSettings(
                epochs=epochs or 400,
                batch=2048,
                precision="bfloat16",
                ema=0.9999,
                optimizer=OptimizerSettings(
                    lr=4e-4,
                    weight_decay=0.02,
                    exempt=("vectors",),
                    clip=3.0,
                    warmup=100 / (epochs or 400),
                    schedule="cosine",
                    final=0.0,
                ),
            ),
            lr_batch=2048,
            unknown=() if epochs else ("epochs",),
            augmentation=("centre crop", "flip"),
            departs=("float16 is bfloat16 here", "no dropout of attention weights"),
        ),
    )


SIZES = (
    _size("B", 12, 768, 12, 4, 218_024_704, None, None),
    _size("L", 16, 1024, 16, 4, 486_889_472, 1.76, 400),
    _size("H", 20, 1280, 16, 6, 910_040_576, 1.55, 800),
)

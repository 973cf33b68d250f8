"""Published sizes of TiTok's generators (arXiv:2406.07550; bytedance/1d-tokenizer)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings

#: Of B-64; the configs of the other two are not published.
TRAINING = Training(
    settings=TrainSettings(
        steps=500_000,
        batch=2048,
        precision="bfloat16",
        ema=0.999,
        optimizer=OptimizerSettings(
            lr=2e-4,
            betas=(0.9, 0.96),
            weight_decay=0.03,
            exempt=("vectors", "feed.", "condition.", "norm"),
            warmup=10_000 / 500_000,
            schedule="cosine",
            final=1e-5 / 2e-4,
        ),
    ),
    lr_batch=2048,
    augmentation=("shorter side to 256", "centre crop", "flip"),
    departs=("no dropout of attention weights", "labels are not smoothed"),
)


def _size(name: str, parameters: int, fid: float, **args: object) -> Size:
    tokens = int(name.split("-")[1])
    return Size(
        name=name,
        args=args,
        parameters=parameters,
        layout=TokenLayout(grids=((1, tokens),), vocabulary=4096, axis="sequence"),
        codec=("titok", {"size": f"TiTok-{name}"}),
        checkpoints=(f"generator_titok_{name.lower().replace('-', '')}.bin", f"tokenizer_titok_{name.lower().replace('-', '')}.bin"),
        headline=f"FID {fid}",
        training=TRAINING if name == "B-64" else None,
    )


BERT = (
    _size("L-32", 177_202_432, 2.77, depth=24, width=768, heads=16, segments=2, noise=9.5),
    _size("B-64", 177_227_008, 2.48, depth=24, width=768, heads=16, segments=2, noise=11.0),
)
UVIT = (_size("S-128", 294_990_848, 1.97, depth=21, width=1024, heads=16, steps=64, noise=2.8),)

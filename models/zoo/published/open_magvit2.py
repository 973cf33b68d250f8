"""Published sizes of Open-MAGVIT2's generators (arXiv:2409.04410; TencentARC/Open-MAGVIT2-AR)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs


def _size(name: str, depth: int, width: int, heads: int, inner: int, parameters: int, fid: float, **train: float) -> Size:
    epochs = train.get("epochs", 300)
    return Size(
        name=name,
        args={"depth": depth, "width": width, "heads": heads, "inner": inner, "multiple_of": 256},
        parameters=parameters,
        layout=grid(16, 4096, codebooks=2, vocabularies=(64, 4096)),  # 18 bits as 6 and 12
        codec=codecs.OPEN_MAGVIT2,
        checkpoints=(f"AR_256_{name}.ckpt", "imagenet_256_L.ckpt"),
        headline=f"FID {fid}",
        training=Training(
            settings=TrainSettings(
                epochs=epochs,
                batch=768,
                precision="bfloat16",
                optimizer=OptimizerSettings(
                    lr=train.get("lr", 3e-4),
                    exempt=(),  # the official schedule of the decay overwrites that of vectors too
                    warmup=(7 if epochs == 350 else 6) / epochs,
                    warmup_from=0.005,
                    hold=0.05,
                    schedule="linear",
                    final=0.1,
                ),
            ),
            lr_batch=768,
            augmentation=("shorter side to 256", "random crop"),
            departs=("float16 with a loss scale is bfloat16 here", "images are tokenized once, not in every step under a random crop"),
        ),
    )


SIZES = (
    _size("B", 24, 1024, 16, 2, 343_570_432, 3.08),
    _size("L", 36, 1280, 20, 3, 804_362_240, 2.51),
    _size("XL", 48, 1536, 24, 4, 1_486_679_040, 2.33, lr=2.4e-4, epochs=350),
)

"""Published sizes of MaskGIT (arXiv:2202.04200; google-research/maskgit)."""

from __future__ import annotations

from tokenloom.models.core.published import Size, Training, grid
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

#: The released config; the training code was not released.
TRAINING = Training(
    settings=TrainSettings(
        steps=2_000_000,
        batch=256,
        ema=0.999,
        optimizer=OptimizerSettings(
            kind="adam", lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=5000 / 2_000_000, schedule="constant", clip=0.0
        ),
    ),
    lr_batch=256,
    unknown=("optimizer.exempt", "optimizer.clip"),
    departs=("no dropout of attention weights",),
)


def _size(image: int, parameters: int, fid: float) -> Size:
    return Size(
        name="base" if image == 256 else f"base-{image}",
        published=f"base-{image}",
        args={"depth": 24, "width": 768, "heads": 16, "steps": 16, "label_dropout": 0.0, "null": "zero", "spare": 1001},
        parameters=parameters,
        layout=grid(image // 16, 1024),
        image=image,
        codec=codecs.MASKGIT,
        checkpoints=(f"maskgit_imagenet{image}_checkpoint", f"tokenizer_imagenet{image}_checkpoint"),
        headline=f"FID {fid}",
        training=TRAINING,
    )


SIZES = (_size(256, 173_047_785, 6.06), _size(512, 173_637_609, 7.32))

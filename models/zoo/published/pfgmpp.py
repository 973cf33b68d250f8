"""Published sizes of PFGM++ (arXiv:2302.04265; Newbeeer/pfgmpp)."""

from __future__ import annotations

from typing import Any

from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings

#: 200 million images, of which the first ten million warm the learning rate up; weights are averaged with half lives of 0.5 million.
_TRAINING = Training(
    settings=TrainSettings(
        epochs=4000,
        batch=512,
        ema=0.5 ** (512 / 500_000),
        optimizer=OptimizerSettings(kind="adam", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0, clip=0.0, warmup=0.05, schedule="constant"),
    ),
    images=50_000,
    augmentation=("released: geometric augmentation of 12% of the images, which the net is told",),
    departs=("no augmentation here", "gradients that are no numbers stop the training"),
)


def _size(name: str, published: str, args: dict[str, Any], parameters: int) -> Size:
    shared = {"multipliers": [2, 2, 2], "dropout": 0.13, "augment": 9}
    return Size(
        name=name,
        published=published,
        args=shared | args,
        parameters=parameters,
        image=32,
        classes=0,
        training=_TRAINING,
    )


PFGMPP = (
    _size("DDPM++", "CIFAR-10 DDPM++ (arch ddpmpp)", {}, 55_733_891),
    _size(
        "NCSN++",
        "CIFAR-10 NCSN++ (arch ncsnpp)",
        {"times": "fourier", "times_multiple": 2, "encoder": "residual", "taps": [1, 3, 3, 1]},
        56_397_827,
    ),
)

"""Published sizes of VAR (arXiv:2404.02905; FoundationVision/VAR)."""

from __future__ import annotations

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.published import Size, Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.zoo.published import codecs

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def layout(scales: tuple[int, ...], vocabulary: int) -> TokenLayout:
    """Square grids of these sides."""
    return TokenLayout(grids=tuple((n, n) for n in scales), vocabulary=vocabulary)


def training(depth: int, epochs: int, batch: int = 768) -> Training:
    """VAR's schedule at a depth, which its relatives FlexVAR, HMAR and M-VAR share."""
    deep = depth >= 24
    return Training(
        settings=TrainSettings(
            epochs=epochs,
            batch=batch,
            precision="bfloat16",
            optimizer=OptimizerSettings(
                lr=(8e-5 if deep else 1e-4) * batch / 256,
                weight_decay_end=0.08 if depth >= 30 else None,
                exempt=("vectors", "position", "temperature", "net.norm.offset"),
                clip=2.0,
                warmup=1 / 50,
                warmup_from=0.005,
                hold=0.05,
                schedule="linear",
                final=0.01 if deep else 0.1,
            ),
        ),
        lr_batch=batch,
        augmentation=("shorter side to 1.125 of the size", "random crop"),
        departs=("float16 with a loss scale is bfloat16 here", "images are tokenized once, not in every step under a random crop"),
    )


def gamma(depth: int) -> float:
    """Size of the initial gammas at a depth."""
    return next(value for least, value in ((36, 5e-6), (30, 1e-5), (24, 1e-4), (0, 1e-3)) if depth >= least)


def _size(depth: int, parameters: int, fid: float, epochs: int, batch: int = 768, image: int = 256) -> Size:
    scales = SCALES_256 if image == 256 else SCALES_512
    return Size(
        name=f"d{depth}",
        published=f"d{depth}" if image == 256 else f"d{depth}-{image}",
        args={"depth": depth, "gamma": gamma(depth)} | ({"adaln": "shared"} if image == 512 else {}),
        parameters=parameters,
        layout=layout(scales, 4096),
        image=image,
        codec=codecs.var(scales),
        checkpoints=(f"var_d{depth}.pth", "vae_ch160v4096z32.pth"),
        headline=f"FID {fid}",
        training=training(depth, epochs, batch),
    )


SIZES = (
    _size(16, 310_283_520, 3.55, 200),
    _size(20, 600_917_136, 2.95, 250),
    _size(24, 1_033_399_360, 2.33, 350),
    _size(30, 2_010_020_356, 1.97, 350, batch=1024),
    _size(36, 2_353_893_904, 2.63, 350, image=512),
)

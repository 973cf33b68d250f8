"""Published sizes of FlexVAR (arXiv:2502.20313; jiaosiyu1999/FlexVAR)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import codecs, var

#: Grids of all sides are stored, since training draws among them.
SIDES = tuple(range(1, 17))


def _size(depth: int, parameters: int, fid: float, epochs: int) -> Size:
    train = var.training(depth, epochs)
    return Size(
        name=f"d{depth}",
        args={"depth": depth, "gamma": var.gamma(depth)},
        parameters=parameters,
        layout=var.layout(SIDES, 8912),
        tokens=sum(n * n for n in var.SCALES_256),
        codec=codecs.flexvar(SIDES),
        checkpoints=(f"FlexVARd{depth}-epo{epochs - 1}.pth", "FlexVAE.pth"),
        headline=f"FID {fid}",
        training=replace(train, augmentation=("shorter side to 1 to 1.14 of the size", "random crop", "flip")),
    )


SIZES = (
    _size(16, 315_561_936, 3.05, 180),
    _size(20, 607_513_952, 2.41, 250),
    _size(24, 1_041_314_576, 2.21, 350),
)

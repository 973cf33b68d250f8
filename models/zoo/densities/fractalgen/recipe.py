"""FractalGen: fractal generative models (Li et al. 2025, arXiv:2502.17437).

New: a generator of patches calls the same kind of generator for each patch, down to the channels of a pixel, so that images are made
pixel by pixel at a cost that grows slowly with their size; likelihoods in bits a dimension.
Differs: mask shares are one of 256 quantiles; labels are dropped by the step's draws.
Run: tokenloom run smoke_fractalgen
Expect: ImageNet 64 3.14 bits a dimension (AR) and 3.15 (MAR), FID 5.30 and 2.72; ImageNet 256 FID 6.15 with guiding pixels (H).
"""

from __future__ import annotations

from typing import Literal

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.fractalgen.level import LevelSize
from tokenloom.models.zoo.densities.fractalgen.module import FractalGen, FractalSampler


@register(
    "fractalgen",
    kind="density",
    paper="2502.17437",
    tiny={"kind": "mar", "steps": (3, 2), "widths": (32, 32, 32), "depths": (1, 1, 1), "heads": (2, 2, 2), "classes": 3, "guidance": 0.5},
)
def fractalgen(
    sides: tuple[int, ...] = (0, 4, 1),
    widths: tuple[int, ...] = (1024, 512, 128),
    depths: tuple[int, ...] = (32, 8, 3),
    heads: tuple[int, ...] = (16, 8, 4),
    kind: Literal["ar", "mar"] = "ar",
    steps: tuple[int, ...] = (64, 16),
    guide: bool = False,
    classes: int = 0,
    dropout: float = 0.1,
    guidance: float = 0.0,
) -> FractalGen.Config:
    """FractalAR of ImageNet 64 by default: image (of whatever side), patch and pixel; of kind mar with five conditions a patch, and with
    ``guide`` a mean pixel first."""
    lists = zip(sides, widths, depths, heads, [*steps, *[1] * len(sides)])
    return FractalGen.Config(
        levels=tuple(LevelSize(side=s, width=w, depth=d, heads=h, kind=kind, steps=n) for s, w, d, h, n in lists),
        conditions=5 if kind == "mar" else 1,
        guide=(128, 3, 4) if guide else None,
        first=5.0 if guide else 1.0,
        classes=classes,
        dropout=dropout,
        sampler=FractalSampler(weight=guidance),
    )

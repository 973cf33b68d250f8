"""Published sizes of NAR (arXiv:2503.10696)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import llamagen

_ROWS = (
    ("B", 12, 768, 12, 130_551_552),
    ("M", 18, 1024, 16, 295_453_696),
    ("L", 24, 1024, 16, 372_536_320),
    ("XL", 36, 1280, 20, 815_991_040),
    ("XXL", 48, 1536, 24, 1_464_454_656),
)
_OPTIMIZER = replace(llamagen.TRAINING.settings.optimizer, schedule="drops", drops=((1 / 2, 0.2), (2 / 3, 0.2**2), (5 / 6, 0.2**3)))
TRAINING = replace(llamagen.TRAINING, settings=replace(llamagen.TRAINING.settings, optimizer=_OPTIMIZER))


def _size(name: str, depth: int, width: int, heads: int, parameters: int) -> Size:
    args = {"depth": depth, "width": width, "heads": heads, "multiple_of": 256}
    return replace(
        llamagen.SIZES[0], name=name, published=name, args=args, parameters=parameters, checkpoints=(), headline="", training=TRAINING
    )


SIZES = tuple(_size(*row) for row in _ROWS)

"""Published sizes of PAR (arXiv:2412.15119; Epiphqny/PAR)."""

from __future__ import annotations

from dataclasses import replace

from tokenloom.models.core.published import Size
from tokenloom.models.zoo.published import llamagen

_ROWS: tuple[tuple[str, int, int, float | None], ...] = (
    ("XL", 2, 774_703_360, 2.61),
    ("XXL", 2, 1_410_977_280, 2.35),
    ("3B", 2, 3_096_668_800, 2.29),
    ("3B", 4, 3_096_707_200, 2.88),
    ("XL", 4, 774_718_720, None),
    ("XXL", 4, 1_410_995_712, None),
)


def _size(name: str, across: int, parameters: int, fid: float | None) -> Size:
    of = next(size for size in llamagen.SIZES if size.name == f"{name}-384")
    key = f"{name}-{across**2}x"
    return replace(
        of,
        name=key,
        published=key,
        args={**of.args, "across": across},
        parameters=parameters,
        checkpoints=(f"PAR-{key}.pt", "vq_ds16_c2i.pt") if fid else (),
        headline=f"FID {fid}" if fid else "",
    )


SIZES = tuple(_size(*row) for row in _ROWS)

"""The grids of a multi-scale quantizer, square or not.

Shapes: H W the last grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from tokenloom.models.core.config import ConfigError

#: A grid of (rows, columns), or one number for a square one.
Grid = int | tuple[int, int]


def pair(grid: Grid) -> tuple[int, int]:
    """Rows and columns."""
    return (grid, grid) if isinstance(grid, int) else grid


def growing(scales: Sequence[Grid]) -> None:
    """Check that each grid is larger than the one before in one direction at least, and smaller in none.

    Raises:
        ConfigError: none given, one without positions, or two out of order.
    """
    pairs = [pair(s) for s in scales]
    fits = all(a != b and a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(pairs))
    if not pairs or min(pairs[0]) < 1 or not fits:
        raise ConfigError(f"quantizer.scales={list(scales)}: give growing grid sizes, e.g. [1, 2, 3, 4], or [[1, 1], [2, 1], [4, 2]]")


def resized(scales: Sequence[Grid], grid: tuple[int, int]) -> tuple[Grid, ...]:
    """As many growing grids that end with another ``grid``: every side in its share of the last one's, and at least one position; the
    first grid stays, as generators learn what stands in it.

    Raises:
        ConfigError: the grid is too small for so many.
    """
    pairs = [pair(s) for s in scales]
    high, wide = pairs[-1]
    found = (pairs[0], *((max(1, round(h * grid[0] / high)), max(1, round(w * grid[1] / wide))) for h, w in pairs[1:]))
    if any(a == b or a[0] > b[0] or a[1] > b[1] for a, b in pairwise(found)):
        raise ConfigError(f"{grid[0]} rows and {grid[1]} columns of tokens: too few for {len(found)} growing scales, {list(found)}")
    return found


def grown(scales: Sequence[Grid], grid: tuple[int, int]) -> tuple[Grid, ...]:
    """The scales for another ``grid`` of tokens whose scales stand alone: those sides that are there, then sides that grow by the root of
    two at most (from 16 to 32 by way of 23, as FlexVAR is released); each in the grid's proportions."""
    most, sides = max(grid), sorted({max(pair(scale)) for scale in scales})
    start = [side for side in sides if side < most]
    while start and start[-1] * math.sqrt(2) < most - 0.5:
        start.append(math.floor(start[-1] * math.sqrt(2) + 0.5))
    found = [(max(1, round(side * grid[0] / most)), max(1, round(side * grid[1] / most))) for side in [*start, most]]
    return tuple(dict.fromkeys(found))


#: Sides of the scales of Infinity's images by rows a column: of 256, 512 and 1,024 pixels a side, or as many, these are the first 7, 10
#: and 13 (released code, ``dynamic_resolution.py``).  Upright ones; wide ones have them turned.
ASPECTS = (
    "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
)


def at_aspect(scales: Sequence[Grid], grid: tuple[int, int]) -> tuple[Grid, ...]:
    """The scales for another ``grid``: the released ones of its aspect where ``scales`` are released ones, else ``resized``."""
    tables = [tuple((int(h), int(w)) for h, w in (each.split("x") for each in row.split())) for row in ASPECTS]
    tables += [tuple((w, h) for h, w in table) for table in tables[1:]]
    own = tuple(pair(scale) for scale in scales)
    if any(own == table[: len(own)] for table in tables if len(own) >= 7):
        for table in tables:
            if grid in table[6:]:
                return table[: table.index(grid) + 1]
    return resized(scales, grid)


def last(scales: Sequence[Grid], grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """All grids as rows and columns, the last of which must be the latent ``grid``.

    Raises:
        ConfigError: it is another.
    """
    if grid != pair(scales[-1]):
        raise ConfigError(f"quantizer.scales={list(scales)}: the last scale must be the latent grid, which is {grid[0]}x{grid[1]}")
    return tuple(pair(s) for s in scales)

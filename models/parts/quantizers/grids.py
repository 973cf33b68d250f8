"""The grids of a multi-scale quantizer, square or not.

Shapes: H W the last grid.
"""

from __future__ import annotations

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


def last(scales: Sequence[Grid], grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """All grids as rows and columns, the last of which must be the latent ``grid``.

    Raises:
        ConfigError: it is another.
    """
    if grid != pair(scales[-1]):
        raise ConfigError(f"quantizer.scales={list(scales)}: the last scale must be the latent grid, which is {grid[0]}x{grid[1]}")
    return tuple(pair(s) for s in scales)

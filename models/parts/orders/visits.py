"""In which sequence the positions of a grid are decoded, of orders that may start anywhere.

Shapes: L positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config
from tokenloom.models.core.draws import SampleDraws, permutations
from tokenloom.models.core.layout import LayoutError, TokenLayout


class Visit(config.Config, ABC):
    """In which sequence positions are decoded."""

    @abstractmethod
    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        """(rows or 1, L) layout positions."""


@dataclass(frozen=True, kw_only=True)
class Shuffled(Visit, tag="order.shuffled", label="random"):
    """A fresh permutation for each row."""

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        return permutations(layout.length, draws)


@dataclass(frozen=True, kw_only=True)
class InSequence(Visit, tag="order.in_sequence", label="raster"):
    """Positions as they are stored: row after row of a grid."""

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        return torch.arange(layout.length)[None]


@dataclass(frozen=True, kw_only=True)
class Halton(Visit, tag="order.halton", label="Halton sequence"):
    """The Halton sequence in bases 2 (rows) and 3 (columns): any prefix covers the grid evenly (arXiv:2503.17076)."""

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        if len(layout.grids) > 1 or layout.frames > 1:
            raise LayoutError(f"a Halton sequence needs one grid, not {layout.grids} of {layout.frames} frames")
        high, wide = layout.grids[0]
        found: dict[int, None] = {}
        index = 0
        while len(found) < high * wide:
            index += 1
            row, column = int(_halton(index, 2) * high), int(_halton(index, 3) * wide)
            found.setdefault(row * wide + column)
        return torch.tensor([list(found)])


def _halton(index: int, base: int) -> float:
    """The radical inverse of an index: its digits mirrored at the point."""
    result, part = 0.0, 1.0
    while index:
        part /= base
        index, digit = divmod(index, base)
        result += digit * part
    return result

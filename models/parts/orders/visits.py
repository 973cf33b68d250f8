"""In which sequence the positions of a grid are decoded, of orders that may start anywhere.

Shapes: L positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError
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
class Listed(Visit, tag="order.listed", label="as listed"):
    """The positions of ``places``, then those that it leaves out, as they are stored."""

    places: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.places or len(set(self.places)) < len(self.places) or min(self.places) < 0:
            raise ConfigError(f"sample.order={list(self.places)}: give positions from 0 on, each once")

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        if max(self.places) >= layout.length:
            raise ConfigError(f"sample.order: position {max(self.places)}, the model has {layout.length}, numbered from 0")
        listed = set(self.places)
        return torch.tensor([[*self.places, *(i for i in range(layout.length) if i not in listed)]])


@dataclass(frozen=True, kw_only=True)
class Outward(Visit, tag="order.outward", label="outward"):
    """From the middle of the grid outward, ring by ring; as stored where two are as far."""

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        row, column = layout.coordinates("row"), layout.coordinates("column")
        high, wide = layout.grids[-1]
        far = torch.maximum((2 * row - high + 1).abs(), (2 * column - wide + 1).abs())
        return far.argsort(stable=True)[None]


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


@dataclass(frozen=True, kw_only=True)
class RolledHalton(Halton, tag="order.rolled_halton", label="Halton sequence, rolled"):
    """The Halton sequence from a random entry on, another one for each sample, and around to its start (the released sampler's option)."""

    def sequence(self, layout: TokenLayout, rows: int, draws: SampleDraws | None) -> Tensor:
        whole_1L = super().sequence(layout, rows, draws)
        if draws is None:
            return whole_1L
        first_B1 = (draws.uniform("order", 0, 1) * layout.length).long()
        return whole_1L.to(first_B1.device)[0, (torch.arange(layout.length, device=first_B1.device) + first_B1) % layout.length]


def _halton(index: int, base: int) -> float:
    """The radical inverse of an index: its digits mirrored at the point."""
    result, part = 0.0, 1.0
    while index:
        part /= base
        index, digit = divmod(index, base)
        result += digit * part
    return result

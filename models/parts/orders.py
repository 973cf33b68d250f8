"""Orders: a partition of the positions into successive groups that are predicted one after another.

Shapes: B rows (1 when all rows share the plan), L positions, G groups.
One rule gives every attention mask of the family: a slot sees the slots whose group is not later than its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models import config
from models.draws import Draws
from models.protocols import TokenLayout


@dataclass(frozen=True)
class Plan:
    """Positions sorted by the group that predicts them.

    ``sequence_BL`` lists layout positions group after group; ``sizes`` are the groups' lengths (the same in
    all rows, summing to L).  ``window`` limits sight to that many earlier groups (None: all, HMAR: 0 or 1).
    ``target_BL`` marks the positions that carry loss (None: all; masked models train only on the masked ones).
    """

    sequence_BL: Tensor
    sizes: tuple[int, ...]
    window: int | None = None
    target_BL: Tensor | None = None

    @property
    def groups(self) -> int:
        """Number of groups G, the decoding steps."""
        return len(self.sizes)

    @property
    def group_BL(self) -> Tensor:
        """(B, L) group of each layout position."""
        by_sequence = torch.arange(self.groups).repeat_interleave(torch.tensor(self.sizes)).to(self.sequence_BL.device)
        return torch.zeros_like(self.sequence_BL).scatter_(1, self.sequence_BL, by_sequence.expand_as(self.sequence_BL))

    def members(self, group: int) -> Tensor:
        """(B, n) layout positions of one group."""
        start = sum(self.sizes[:group])
        return self.sequence_BL[:, start : start + self.sizes[group]]

    def visible(self, query_BS: Tensor, key_BT: Tensor) -> Tensor:
        """(B, S, T) true where a query of group i sees a key of group j: ``i - window <= j <= i``.

        Groups below zero are prefixes (conditions): the window never hides them.
        """
        query, key = query_BS.unsqueeze(2), key_BT.unsqueeze(1)
        seen = key <= query
        if self.window is not None:
            seen &= (key >= query - self.window) | (key < 0)
        return seen


class Order(Protocol):
    """What an order offers; ``draws`` feeds random orders."""

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        """The plan of one training step."""
        ...

    def decode(self, layout: TokenLayout, rows: int, generator: torch.Generator | None) -> Plan:
        """The plan of sampling; for fixed orders the same as ``plan``."""
        ...


def grouped(keys: Sequence[tuple[int, ...]], window: int | None = None) -> Plan:
    """The plan whose groups are the positions with equal key, in ascending key order, storage order inside."""
    index = sorted(range(len(keys)), key=lambda i: keys[i])
    sizes: list[int] = []
    for before, now in zip([None, *index], index):
        if before is not None and keys[before] == keys[now]:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return Plan(torch.tensor([index]), tuple(sizes), window)


class _Fixed(ABC):
    """An order that depends on the layout alone."""

    @abstractmethod
    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        """The same plan at every step."""

    def decode(self, layout: TokenLayout, rows: int, generator: torch.Generator | None = None) -> Plan:
        """Decoding follows the training order."""
        return self.plan(layout, None)


@dataclass(frozen=True, kw_only=True)
class Raster(_Fixed, config.Config):
    """One position a group, in storage order: scale by scale, row by row (LlamaGen, taming transformers)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return Plan(torch.arange(layout.length)[None], (1,) * layout.length)


@dataclass(frozen=True, kw_only=True)
class Scales(_Fixed, config.Config):
    """All positions of a scale at once, small to large (VAR, arXiv:2404.02905); ``window`` as in HMAR."""

    window: int | None = None

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return grouped([(t, s) for t, s, _, _ in layout.positions.tolist()], self.window)


@dataclass(frozen=True, kw_only=True)
class Diagonals(_Fixed, config.Config):
    """All positions of equal Manhattan distance from the corner at once (NAR, arXiv:2503.10696)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return grouped([(t, s, r + c) for t, s, r, c in layout.positions.tolist()])


@dataclass(frozen=True, kw_only=True)
class Random(config.Config):
    """A fresh permutation for each row, cut into groups of the given size (RandAR, ARPG, RAR, sigma-GPT)."""

    size: int = 1

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        if draws is None:
            raise ValueError("a random order needs draws")
        return Plan(draws.permutation(layout.length), self._sizes(layout.length))

    def decode(self, layout: TokenLayout, rows: int, generator: torch.Generator | None) -> Plan:
        noise = torch.rand((rows, layout.length), generator=generator)
        return Plan(noise.argsort(1), self._sizes(layout.length))

    def _sizes(self, length: int) -> tuple[int, ...]:
        whole, rest = divmod(length, self.size)
        return (self.size,) * whole + ((rest,) if rest else ())

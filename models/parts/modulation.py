"""Modulation vectors of a whole decoding, and what adaptive norms make of them, made for many steps by one matrix product.

Shapes: B rows, T slots of a decoding in its order, S new slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

#: Rows of one product: with fewer, reading the weights takes longer than the arithmetic.
ROWS = 128


class Ahead:
    """The vectors of all slots (B, T, D), or one for all (T = 1), and the outputs of maps of them that are in use.

    Vectors that are known before decoding starts need not wait for their step: each map is applied to those of the next steps
    together, and its output is kept until decoding is past them.
    """

    def __init__(self, vector_BTD: Tensor) -> None:
        self.active_BTD = F.silu(vector_BTD)
        self.block = max(1, ROWS // len(vector_BTD))
        self._made: dict[nn.Module, tuple[int, Tensor]] = {}

    def part(self, start: int, slots: int) -> Modulation:
        """Those of ``slots`` slots from ``start`` on."""
        return Modulation(self, 0, 1) if self.active_BTD.shape[1] == 1 else Modulation(self, start, slots)

    def values(self, linear: nn.Module, start: int, slots: int) -> Tensor:
        """``linear(silu(vectors))`` of these slots."""
        first, made = self._made.get(linear, (0, None))
        if made is None or start < first or start + slots > first + made.shape[1]:
            first, made = start, linear(self.active_BTD[:, start : start + max(slots, self.block)].contiguous())
            self._made[linear] = first, made
        return made[:, start - first : start - first + slots]


@dataclass(frozen=True)
class Modulation:
    """The vectors of some slots, in place of a tensor (B, 1 or S, D)."""

    ahead: Ahead
    start: int
    slots: int

    def through(self, linear: nn.Module) -> Tensor:
        """``linear(silu(vectors))``."""
        return self.ahead.values(linear, self.start, self.slots)


def through(linear: nn.Module, modulation: Tensor | Modulation) -> Tensor:
    """``linear(silu(vectors))``, (B, 1 or S, n)."""
    return modulation.through(linear) if isinstance(modulation, Modulation) else linear(F.silu(modulation))

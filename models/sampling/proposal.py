"""What the verbs of a session hand on: a draw, what was made of it, a point to go back to.

Shapes: B rows, L positions, n positions of a group, T slots that the cache has room for, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.nets.sequence import State
from tokenloom.models.parts.slots import Slots


@dataclass(frozen=True)
class Proposal:
    """The draw for a group: hidden states of the conditional rows (B, n, D), what was drawn from them, and places (B or 1, n)."""

    group: int
    slots: Slots
    h_BnD: Tensor
    drawn: Drawn
    place_Bn: Tensor
    data: Tensor


@dataclass(frozen=True)
class Decoded:
    """One decoding step: the group, its layout positions (B or 1, n) and tokens (B, n, …), and what they were drawn from.

    Hidden states of the conditional rows (B, n, D), guided logits (B, n, …) where the head has them, the slots fed, and the feed's
    state afterwards.  Where the order chooses by confidence, logits and ``drawn`` are those of all positions.
    """

    group: int
    place_Bn: Tensor
    data: Tensor
    h_BnD: Tensor
    logits: Tensor | None
    drawn: Tensor
    slots: Slots
    state: Any


@dataclass(frozen=True)
class Mark:
    """A point to go back to: the feed's state, how much of the cache is filled and with what, and what is known."""

    state: Any
    used: int
    rank_BT: Tensor | None
    segment_BT: Tensor | None
    recurrent: tuple[State, ...]
    data: Tensor
    known_BL: Tensor
    length_B: Tensor
    ended_B: Tensor

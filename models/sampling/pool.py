"""Rows of a net for whoever needs some for a while: one cache of fixed shape, in which each row stands at a slot of its own.

Shapes: R rows in all, B rows of a pass, S new slots, T slots that there is room for, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tokenloom.models.parts.cache import CrossLayerCache, LayerCache, MemoryCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.slots import Slots, visibility_of
from tokenloom.models.parts.visibility import Mask
from tokenloom.models.sampling.fixed import NEVER, SlotTable, run_fixed


class RowPool:
    """At most ``rows`` rows; those in use are the first ones, as rows that go are followed by the last that stay."""

    def __init__(self, net: SlotNet, rows: int, room: int, like: Tensor) -> None:
        """``room``: slots of a row; nets of generators without a cache need none, 0."""
        self.rows, self.room, self.used = rows, room, 0
        self.at_R = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.layers = net.cache(rows, room, like) if room else []
        for layer in self.layers:
            layer.fix(self.at_R)  # a pass is given the part of its rows
        self.table = SlotTable.empty(rows, room, self.at_R)

    @property
    def free(self) -> int:
        """Rows that nobody has."""
        return self.rows - self.used

    def take(self, rows: int) -> range:
        """So many empty rows.

        Raises:
            ValueError: there are fewer.
        """
        if rows > self.free:
            raise ValueError(f"{rows} rows of {self.rows}, of which {self.used} are in use")
        taken = range(self.used, self.used + rows)
        where = slice(taken.start, taken.stop)
        self.at_R[where] = 0
        self.table.rank_BT[where], self.table.segment_BT[where] = NEVER, -1
        self.used += rows
        return taken

    def give_back(self, rows: range) -> None:
        """Rows that nobody needs any more; those behind them move up by as many."""
        behind = torch.arange(rows.stop, self.used, device=self.at_R.device)
        to = behind - len(rows)
        if len(behind):
            buffers = [self.at_R, self.table.rank_BT, self.table.segment_BT]
            buffers += [buffer for layer in self.layers for buffer in (layer.key_BHTE, layer.value_BHTE)]
            for buffer in buffers:
                buffer[to] = buffer[behind]
        self.used -= len(rows)

    def adopt(self, other: RowPool) -> None:
        """The rows in use of a pool with less room."""
        self.used = other.used
        self.at_R[:] = other.at_R
        self.table.rank_BT[:, : other.room], self.table.segment_BT[:, : other.room] = other.table.rank_BT, other.table.segment_BT
        for layer, old in zip(self.layers, other.layers):
            layer.key_BHTE[:, :, : other.room], layer.value_BHTE[:, :, : other.room] = old.key_BHTE, old.value_BHTE

    def run(
        self, net: SlotNet, rows: Sequence[range], slots: Sequence[Slots], conds: Sequence[Conditioned], window: int | None
    ) -> list[Tensor]:
        """One pass of a net (that of the caches, or one of its shape) over the new slots of several owners: hidden states of each."""
        counts = [len(r) for r in rows]
        together = joined(slots, counts)
        cond = conds[0]
        if len(conds) > 1:
            cond = Conditioned(*(_cat([getattr(c, name) for c in conds]) for name in Conditioned.__dataclass_fields__))  # type: ignore[arg-type]
        if not self.layers:
            seen = [_seen(each, window, c, n) for each, c, n in zip(slots, conds, counts)]
            return list(net(together, Mask(torch.cat(seen)), cond).split(counts))
        where = self._where(rows)
        table = SlotTable(self.table.rank_BT[where], self.table.segment_BT[where], self.at_R[where])
        layers = [_rows_of(layer, where, table.at_B) for layer in self.layers]
        states = run_fixed(net, together, cond, layers, table, window)
        if isinstance(where, Tensor):  # these were copies
            self._write(where, table, layers)
        self.at_R[where] += together.x_BSD.shape[1] if together.cached is None else together.cached
        return list(states.split(counts))

    def _where(self, rows: Sequence[range]) -> slice | Tensor:
        """A slice, where the rows stand side by side: its part of a buffer is no copy."""
        if all(one.stop == next_.start for one, next_ in pairwise(rows)):
            return slice(rows[0].start, rows[-1].stop)
        return torch.tensor([i for r in rows for i in r], device=self.at_R.device)

    def _write(self, where: Tensor, table: SlotTable, layers: list[LayerCache]) -> None:
        self.table.rank_BT[where], self.table.segment_BT[where] = table.rank_BT, table.segment_BT
        for layer, part in zip(self.layers, layers):
            layer.key_BHTE[where], layer.value_BHTE[where] = part.key_BHTE, part.value_BHTE


def alike(slots: Slots, cond: Conditioned) -> tuple[object, ...]:
    """What slots must have in common to go through the net in one pass."""
    memory = None if cond.memory_BTD is None else cond.memory_BTD.shape[1:]
    padded = None if cond.seen_BP is None else cond.seen_BP.shape[1]
    modulated = slots.condition_BSD.shape[1:] if isinstance(slots.condition_BSD, Tensor) else type(slots.condition_BSD)
    return (slots.x_BSD.shape[1:], slots.tokens_per_slot, slots.queries, slots.cached, modulated, cond.vector_BD.shape[1:], memory, padded)


def joined(slots: Sequence[Slots], counts: Sequence[int]) -> Slots:
    """The slots of several owners as those of one batch."""
    if len(slots) == 1:
        return slots[0]

    def rows(name: str) -> Tensor | None:
        each = [getattr(s, name) for s in slots]
        if all(t is None for t in each):
            return None
        return torch.cat([t.expand(count, *t.shape[1:]) for t, count in zip(each, counts)])

    def segments() -> Tensor | None:
        if all(s.segment_BS is None for s in slots):
            return None
        none = [torch.full_like(s.group_BS, -1) if s.segment_BS is None else s.segment_BS for s in slots]
        return torch.cat([t.expand(count, -1) for t, count in zip(none, counts)])

    x, group, position = rows("x_BSD"), rows("group_BS"), rows("position_BS")
    assert x is not None
    assert group is not None
    assert position is not None
    # Each owner reads at its own places, from its own part of the states.
    return replace(
        slots[0], x_BSD=x, group_BS=group, position_BS=position, segment_BS=segments(), condition_BSD=rows("condition_BSD"), visibility=None
    )


def _cat(each: Sequence[Tensor | None]) -> Tensor | None:
    return None if each[0] is None else torch.cat([t for t in each if t is not None])


def _rows_of(layer: LayerCache, where: slice | Tensor, at_B: Tensor) -> LayerCache:
    part = copy(layer)
    part.key_BHTE, part.value_BHTE, part.at_B = layer.key_BHTE[where], layer.value_BHTE[where], at_B
    if isinstance(part, CrossLayerCache):
        part.memory = MemoryCache()  # of these rows
    return part


def _seen(slots: Slots, window: int | None, cond: Conditioned, rows: int) -> Tensor:
    """(B, S, S) what the slots attend to where each pass is given all of them anew."""
    new = slots.x_BSD.shape[1]
    return visibility_of(slots, window, cond.seen_BP).seen(new, new, slots.x_BSD.device).expand(rows, new, new)

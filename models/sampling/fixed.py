"""A pass of the net over caches of fixed shape: what is not filled, or belongs to others, is hidden by a mask.

Shapes: B rows, S new slots, T slots that the cache has room for, P prefix slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Groups, Mask, Segments

#: The rank of a slot that is not filled: no group is as late.
NEVER = 1 << 40


@dataclass(frozen=True)
class SlotTable:
    """What the mask has to know of a cache: the group and the segment of each slot, and where each row (or all, (1,)) writes next."""

    rank_BT: Tensor
    segment_BT: Tensor
    at_B: Tensor

    @classmethod
    def empty(cls, rows: int, room: int, at_B: Tensor) -> SlotTable:
        """Of caches that nothing was written to."""
        rank_BT = torch.full((rows, room), NEVER, device=at_B.device)
        return cls(rank_BT, torch.full_like(rank_BT, -1), at_B)


def run_fixed(
    net: SlotNet, slots: Slots, cond: Conditioned, cache: list[LayerCache] | None, table: SlotTable, window: int | None
) -> Tensor:
    """Hidden states of new slots; the table then says what is filled, its owner moves ``at_B`` on by the slots that stay."""
    rank, segment, device = table.rank_BT, table.segment_BT, table.rank_BT.device
    new = slots.x_BSD.shape[1]
    cached = new if slots.cached is None else slots.cached
    index = (table.at_B[:, None] + torch.arange(new, device=device)).expand(len(rank), -1)
    rank.scatter_(1, index, slots.group_BS.expand_as(index))
    own = torch.full_like(index, -1) if slots.segment_BS is None else slots.segment_BS.expand_as(index)
    segment.scatter_(1, index, own)
    visible = Groups(slots.group_BS, rank, window) & Segments(own, segment)
    seen = unpadded(visible.seen(new, rank.shape[1], device), index, cond.seen_BP)
    states = net(slots, Mask(seen), cond, cache)
    rank.scatter_(1, index[:, cached:], NEVER)
    segment.scatter_(1, index[:, :cached], -1)
    return states


def unpadded(visible_BST: Tensor, index_BS: Tensor, seen_BP: Tensor | None) -> Tensor:
    """Padded prefix slots are hidden, but a slot always attends to itself."""
    if seen_BP is None:
        return visible_BST
    slot = torch.arange(visible_BST.shape[2], device=index_BS.device)
    rest = seen_BP.new_ones((len(seen_BP), len(slot) - seen_BP.shape[1]))
    return visible_BST & (torch.cat([seen_BP, rest], dim=1)[:, None] | (index_BS[:, :, None] == slot))

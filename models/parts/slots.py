"""What a feed gives a net: embedded slots, their positions and groups, what they attend to, and where predictions are read.

Shapes: B rows, S slots, T keys, P prefix slots, N predicted positions, K hidden states of a slot, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokenloom.models.parts.norms import Modulation
from tokenloom.models.parts.visibility import Everything, Groups, Padding, Segments, Visibility


@dataclass(frozen=True)
class Slots:
    """Inputs of the net, and how its outputs are read.

    ``group_BS`` is the group from which on a slot is attended to, ``position_BS`` the layout position at which it stands (-1: none).
    ``output_index`` (B or 1, N) are the slots from which the predicted positions are read, in the order of the plan's
    sequence; with K hidden states a slot (B or 1, N, K), a position being read as the mean of those that it has (-1: none).
    A state that is read predicts ``tokens_per_slot`` successive positions.  ``visibility`` is what the feed knows beforehand of what
    the new slots attend to (None: decided by the groups).  The last ``queries`` slots hold no token: no slot attends to them,
    unless it is one of them and the net lets it.  Slots with a segment id in ``segment_BS`` are hidden from all slots of other
    segments (-1: hidden from none).  The first ``cached`` slots stay in the cache for later steps (None: all).
    ``condition_BSD`` are condition vectors of single slots, for adaptive norms.
    """

    x_BSD: Tensor
    group_BS: Tensor
    position_BS: Tensor
    output_index: Tensor
    visibility: Visibility | None = None
    tokens_per_slot: int = 1
    queries: int = 0
    segment_BS: Tensor | None = None
    cached: int | None = None
    condition_BSD: Tensor | Modulation | None = None


def visibility_of(
    slots: Slots,
    window: int | None = None,
    padding_BP: Tensor | None = None,
    key_group_BT: Tensor | None = None,
    key_segment_BT: Tensor | None = None,
) -> Visibility:
    """What new slots attend to, given the groups (B or 1, T) and segments of all keys, cached ones first (None: the slots' own alone).

    ``window`` is the plan's; ``padding_BP`` is true at prefix slots that are not padding.
    """
    key_BT = slots.group_BS if key_group_BT is None else key_group_BT
    segment_BT = slots.segment_BS if key_group_BT is None else key_segment_BT
    seen = slots.visibility
    # A window hides earlier groups: none where a step attends to everything and is given nothing but its own slots.
    alone = isinstance(seen, Everything) and key_BT.shape[1] == slots.group_BS.shape[1]
    if seen is None or (window is not None and not alone):
        seen = (seen or Everything()) & Groups(slots.group_BS, key_BT, window)
        if segment_BT is not None and slots.segment_BS is not None:
            seen = seen & Segments(slots.segment_BS, segment_BT)
    if padding_BP is not None and padding_BP.shape[1]:
        seen = seen & Padding(padding_BP)
    return seen

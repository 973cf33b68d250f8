"""Next-neighbour feed: a token predicts the one to its right and the one below it.

Shapes: B rows, L positions, S slots, P prefix slots, N predicted positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.draws import Draws
from models.parts.conditions import Conditioned
from models.parts.feeds.base import Slots, nowhere, prefix_groups, take
from models.parts.feeds.shifted import Shifted
from models.parts.orders.base import Plan
from models.protocols import LayoutError, TokenLayout


class Neighbours(Shifted):
    """Each position is read from the left neighbour's first hidden state and the upper neighbour's second one (NAR, arXiv:2503.10696).

    The first position is read from the last prefix slot.  Tokens of a group see each other and all earlier ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config):
        """As ``Shifted``."""

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> Neighbours:
            return Neighbours(self, layout, width)

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        if len(layout.grids) > 1 or layout.frames > 1:
            raise LayoutError(f"next neighbours need one grid, not {layout.grids} of {layout.frames} frames")
        self.columns = layout.grids[0][1]

    def check(self, plan: Plan) -> None:
        if len(plan.sequence_BL) > 1 or plan.sizes[0] != 1:
            raise LayoutError("next neighbours need one order for all rows that starts at one position")

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        held = plan.sequence_BL[:, : plan.start(plan.groups - 1)]
        x = self.drop(torch.cat([cond.prefix_BPD, self.table(take(data, held))], dim=1), draws)
        first = prefix_groups(cond.prefix_BPD)
        group = torch.cat([first, plan.group_L[None, : held.shape[1]] + 1], dim=1)
        reads = self._reads(plan.sequence_BL[0].tolist(), held[0].tolist(), first.shape[1], x.device)
        return Slots(x, group, torch.cat([nowhere(first), held], dim=1), reads)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        members = plan.members(group)[0].tolist()
        if group == 0:
            first = prefix_groups(cond.prefix_BPD)
            reads = self._reads(members, [], first.shape[1], first.device)
            return Slots(cond.prefix_BPD, first, nowhere(first), reads, sees="causal")
        held = plan.members(group - 1)
        return Slots(
            self.table(state), torch.full_like(held, group), held, self._reads(members, held[0].tolist(), 0, held.device), sees="all"
        )

    def _reads(self, asked: list[int], held: list[int], prefix: int, device: torch.device) -> Tensor:
        """(1, N, 2) slots of the left and the upper neighbour of each position, -1 beyond the edge."""
        slot = {place: prefix + i for i, place in enumerate(held)}
        pairs = []
        for place in asked:
            row, column = divmod(place, self.columns)
            left, above = (slot[place - 1] if column else -1), (slot[place - self.columns] if row else -1)
            pairs.append((left, above) if place else (prefix - 1, prefix - 1))
        return torch.tensor([pairs], device=device)

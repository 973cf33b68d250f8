"""Next-neighbour feed: a token predicts the one to its right and the one below it.

Shapes: B rows, L positions, S slots, P prefix slots, N predicted positions, M held ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed, nowhere, prefix_groups, take
from tokenloom.models.parts.feeds.shifted import Shifted
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything


class Neighbours(Shifted):
    """Each position is read from the left neighbour's first hidden state and the upper neighbour's second one (NAR, arXiv:2503.10696).

    The first position is read from the last prefix slot.  Tokens of a group see each other and all earlier ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.neighbours"):
        """As ``Shifted``."""

    window = Feed.window  # a token is predicted from two slots

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        if len(layout.grids) > 1 or layout.frames > 1:
            raise LayoutError(f"next neighbours need one grid, not {layout.grids} of {layout.frames} frames")
        self.grid = layout.grids[0]

    def traits(self, plan: Plan) -> Traits:
        return {"hidden states of a slot": Trait(2, "feed")}

    def check(self, plan: Plan) -> None:
        rows, columns = self.grid
        diagonals = tuple(min(d, rows - 1) - max(0, d - columns + 1) + 1 for d in range(rows + columns - 1))
        if len(plan.sequence_BL) > 1 or plan.sizes != diagonals:
            raise LayoutError(f"next neighbours need the diagonals of the grid, the same for all rows, not groups of {plan.sizes}")

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        held = plan.sequence_BL[:, : plan.start(plan.groups - 1)]
        x = self.drop(torch.cat([cond.prefix_BPD, self.table(take(data, held))], dim=1), draws)
        first = prefix_groups(cond.prefix_BPD)
        group = torch.cat([first, plan.group_L[None, : held.shape[1]] + 1], dim=1)
        reads = self._reads(plan.sequence_BL[0], held[0], first.shape[1])
        return Slots(x, group, torch.cat([nowhere(first), held], dim=1), reads)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        members = plan.members(group)[0]
        if group == 0:
            self.check(plan)
            first = prefix_groups(cond.prefix_BPD)
            reads = self._reads(members, members[:0], first.shape[1])
            return Slots(cond.prefix_BPD, first, nowhere(first), reads, visibility=Causal())
        held = plan.members(group - 1)
        return Slots(self.table(state), torch.full_like(held, group), held, self._reads(members, held[0], 0), visibility=Everything())

    def _reads(self, asked_N: Tensor, held_M: Tensor, prefix: int) -> Tensor:
        """(1, N, 2) slots of the left and the upper neighbour of each position, -1 beyond the edge; ``held_M`` stand after the prefix."""
        rows, columns = self.grid
        # One row and column more than the grid, in which nothing stands: index -1 is beyond either edge.
        slot = torch.full((rows + 1, columns + 1), -1, device=held_M.device)
        slot[held_M // columns, held_M % columns] = torch.arange(prefix, prefix + len(held_M), device=held_M.device)
        row, column = asked_N // columns, asked_N % columns
        pairs = torch.stack([slot[row, column - 1], slot[row - 1, column]], dim=-1)
        return torch.where(asked_N[:, None] == 0, prefix - 1, pairs)[None]

"""Shifted tokens with two positions: where the token stands, and which position comes next.

Shapes: B rows, L positions, S slots, P prefix slots, n members of a group, m closed slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import nowhere, prefix_groups, span, take
from tokenloom.models.parts.feeds.shifted import Shifted, at
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything, Visibility


@dataclass(frozen=True)
class OpenChain:
    """State of decoding: slots whose aim is known and that the cache lacks (B, m, D) at places (B, m), and what is not aimed yet:
    the last token (B, 1, D) and its place (B, 1)."""

    closed_BmD: Tensor
    closed_Bm: Tensor
    open_B1D: Tensor
    open_B1: Tensor


class DoublePosition(Shifted):
    """Any order by double positions (sigma-GPT, arXiv:2404.09562): a slot holds a token, its position and the position to predict.

    Slot i of the chain holds the token of entry i - 1 of the sequence and is aimed at entry i; it attends to those before it.  A group of
    several positions is predicted from copies of the last known token, one aimed at each, which no other slot attends to: so all are
    predicted from the same known tokens.  Afterwards the chain goes on through them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.double_position", label="shifted tokens, double positions"):
        """As ``Shifted``."""

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        # The last row, which index -1 picks, is that of the condition.
        self.position = nn.Parameter(torch.empty(layout.length + 1, width))
        self.position_target = nn.Parameter(torch.empty(layout.length, width))
        for weight in (self.position, self.position_target):
            nn.init.trunc_normal_(weight, std=0.02)

    def traits(self, plan: Plan) -> Traits:
        ordered = "yes" if max(plan.sizes) == 1 and plan.choice is None else "no"
        return {"slots in sequence order": Trait(ordered, "feed"), "predictions of all open positions": Trait("yes", "feed")}

    def check(self, plan: Plan) -> None:
        """Any plan will do."""

    def slots(self, plan: Plan, prefix: int) -> int:
        queries = plan.sequence_BL.shape[1] if plan.choice is not None else max(plan.sizes)
        return prefix + plan.sequence_BL.shape[1] + queries

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        if max(plan.sizes) == 1:
            held, rank, place = self._chain(data, plan.sequence_BL, cond, draws)
            x = self._aimed(held, plan.sequence_BL)
            prefix = x.shape[1] - plan.sequence_BL.shape[1]
            return Slots(x, rank, place, prefix + span(0, plan.sequence_BL.shape[1], x.device), visibility=Causal())
        starts = [plan.start(g) for g, size in enumerate(plan.sizes) for _ in range(size)]
        return self.queried(data, plan.sequence_BL, torch.tensor([starts], device=data.device), cond, draws)

    def queried(self, data: Tensor, sequence_BL: Tensor, known_BL: Tensor, cond: Conditioned, draws: Draws | None = None) -> Slots:
        """All entries of the sequence, each predicted when the first ``known_BL`` (B or 1, L) entries are known."""
        # First the chain, whose slot prefix + i holds entry i - 1 and is aimed at entry i; then, for each entry, a copy of slot
        # prefix + known, which holds the last known token, aimed at that entry.
        length = sequence_BL.shape[1]
        held, rank, place = self._chain(data, sequence_BL, cond, draws)
        chain = self._aimed(held, sequence_BL)
        prefix = chain.shape[1] - length
        index = (prefix + known_BL).expand(len(held), -1)
        copies = held.gather(1, index.unsqueeze(-1).expand(-1, -1, held.shape[-1])) + self.position_target[sequence_BL]
        rows = max(len(place), len(known_BL))
        place = place.expand(rows, -1)
        # Groups of the chain are even, 2 i for slot prefix + i.  A copy attends to the slots whose aim is known, 0 … known - 1, and to
        # itself: the odd number after 2 (known - 1).
        queries = 2 * known_BL - 1
        return Slots(
            torch.cat([chain, copies], dim=1),
            torch.cat([rank.expand(len(queries), -1), queries], dim=1),
            torch.cat([place, place.gather(1, (prefix + known_BL).expand(rows, -1))], dim=1),
            prefix + length + span(0, length, data.device),
            segment_BS=torch.cat([torch.full_like(rank, -1), span(0, length, data.device)], dim=1),
        )

    def start(self, plan: Plan, cond: Conditioned) -> Any:
        held = cond.prefix_BPD + self.position[-1]
        place = nowhere(prefix_groups(held))
        return OpenChain(held[:, :-1], place[:, :-1], held[:, -1:], place[:, -1:])

    def step(self, state: OpenChain, plan: Plan, cond: Conditioned, group: int) -> Slots:
        target = plan.candidates(group)
        closed, start, count = state.closed_BmD.shape[1], plan.start(group), target.shape[1]
        rows = max(len(target), len(state.open_B1))
        queries = state.open_B1D + self.position_target[target]
        place = torch.cat([state.closed_Bm.expand(rows, -1), state.open_B1.expand(rows, count)], dim=1)
        # As in the parallel form: slots that the cache lacks have even groups 2 i, up to 2 (start - 1); queries the odd one after them.
        rank = 2 * span(start - closed, start, place.device)
        apart = torch.full((1, count), 2 * start - 1, device=place.device)
        cached = closed
        if plan.choice is None:  # the first member is the chain's next aim
            apart[:, 0].fill_(2 * start)
            cached += 1
        segment = torch.cat([torch.full_like(rank, -1), span(0, count, place.device)], dim=1)
        segment[:, :cached].fill_(-1)
        known: Visibility | None = Causal() if plan.choice is None and max(plan.sizes) == 1 else None
        if closed == 0 and count == 1:
            known = Everything()
        return Slots(
            torch.cat([state.closed_BmD, queries], dim=1),
            torch.cat([rank, apart], dim=1),
            place,
            closed + span(0, count, place.device),
            visibility=known,
            segment_BS=segment,
            cached=cached,
        )

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        slots = super().window(token_Bn, entry_Bn, plan, cond)
        aim = self.position_target[at(plan.sequence_BL, entry_Bn + 1)]
        return replace(slots, x_BSD=slots.x_BSD + self.position[slots.position_BS] + aim)

    def push(self, state: OpenChain, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> Any:
        # Each token drawn tells the aim of the slot before it: [open, t0, …, t(n-2)] are now aimed at [t0, …, t(n-1)], and t(n-1) is open.
        # Without a choice the first of them is in the cache already: it was aimed at the group's first member.
        held = self.table(data) + self.position[place_Bn]
        place = place_Bn
        first = 1 if plan.choice is None else 0
        before = torch.cat([state.open_B1D, held[:, :-1]], dim=1)[:, first:]
        stood = torch.cat([state.open_B1.expand(len(place), -1), place[:, :-1]], dim=1)[:, first:]
        return OpenChain(before + self.position_target[place[:, first:]], stood, held[:, -1:], place[:, -1:])

    def _chain(self, data: Tensor, sequence_BL: Tensor, cond: Conditioned, draws: Draws | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the chain's slots hold, without aims: (B, P - 1 + L, D), with their ranks and places."""
        before = sequence_BL[:, :-1]
        first = prefix_groups(cond.prefix_BPD)
        token = self.table(take(data, before)) + self.position[before]
        held = self.drop(torch.cat([cond.prefix_BPD + self.position[-1], token], dim=1), draws)
        rank = 2 * torch.cat([first, span(1, sequence_BL.shape[1], held.device)], dim=1)
        return held, rank, torch.cat([nowhere(first).expand(len(before), -1), before], dim=1)

    def _aimed(self, held_BSD: Tensor, target_BL: Tensor) -> Tensor:
        """The last L slots aimed at these positions; earlier ones of the prefix have no aim."""
        prefix = held_BSD.shape[1] - target_BL.shape[1]
        return torch.cat([held_BSD[:, :prefix], held_BSD[:, prefix:] + self.position_target[target_BL]], dim=1)

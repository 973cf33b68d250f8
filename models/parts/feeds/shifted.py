"""Shifted tokens: each group is given the tokens of the group before it.

Shapes: B rows, L positions, S slots, P prefix slots, n m members of two successive groups, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import AtLeast, Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import dropout
from tokenloom.models.parts.feeds.base import Feed, nowhere, prefix_groups, span, take
from tokenloom.models.parts.feeds.embedding import embedding
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything


class Shifted(Feed):
    """Each position is given the token before it in the sequence, the first one the condition's prefix.

    LlamaGen's feed (arXiv:2406.06525): a slot stands at the place of the token that it holds.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Feed.Config, tag="feed.shifted", label="shifted tokens"):
        """``dropout`` of the token embeddings."""

        dropout: float = 0.0

    def __init__(self, config: Config, layout: TokenLayout, width: int, spare: int = 0) -> None:
        super().__init__()
        self.rate = config.dropout
        self.table = embedding(layout, width, spare)

    def drop(self, x_BSD: Tensor, draws: Draws | None) -> Tensor:
        """Dropout of embeddings."""
        return dropout(x_BSD, self.rate, draws)

    def slots(self, plan: Plan, prefix: int) -> int:
        return prefix + plan.sequence_BL.shape[1]

    def traits(self, plan: Plan) -> Traits:
        return {"slots in sequence order": Trait("yes", "feed")}

    def requires(self, plan: Plan) -> Traits:
        return {"prefix slots": Trait(AtLeast(1), "feed")}

    def check(self, plan: Plan) -> None:
        if set(plan.sizes) != {1}:
            raise LayoutError(
                f"shifted tokens need one position a group, this order has {plan.groups} groups for {sum(plan.sizes)} positions"
            )

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        before = plan.sequence_BL[:, :-1]
        token = self.table(take(data, before))
        x = self.drop(torch.cat([cond.prefix_BPD, token], dim=1), draws)
        first = prefix_groups(cond.prefix_BPD)
        group = torch.cat([first, plan.group_L[None, 1:]], dim=1)
        place = torch.cat([nowhere(first).expand(len(before), -1), before], dim=1)
        prefix = first.shape[1]
        return Slots(x, group, place, span(prefix - 1, prefix - 1 + sum(plan.sizes), x.device), visibility=Causal())

    def start(self, plan: Plan, cond: Conditioned) -> Tensor | None:
        self.check(plan)
        return None

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        if group == 0:
            first = prefix_groups(cond.prefix_BPD)
            return Slots(
                cond.prefix_BPD, first, nowhere(first), span(first.shape[1] - 1, first.shape[1], first.device), visibility=Causal()
            )
        place = plan.members(group - 1)
        return Slots(self.table(state), torch.full_like(place, group), place, span(0, 1, place.device), visibility=Everything())

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        place = at(plan.sequence_BL, entry_Bn)
        return Slots(self.table(token_Bn), entry_Bn + 1, place, span(0, token_Bn.shape[1], place.device), visibility=Causal())

    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> Tensor:
        return data


def at(sequence_BL: Tensor, entry_Bn: Tensor) -> Tensor:
    """(B, n) layout positions of entries of the sequence, of its last entry beyond its end."""
    return sequence_BL.expand(len(entry_Bn), -1).gather(1, entry_Bn.clamp_max(sequence_BL.shape[1] - 1))


class Registers(Shifted):
    """Groups that may grow: a group is given the tokens of the one before it and, for what it has more, learned registers.

    PAR's feed (arXiv:2412.15119).  A slot is attended to from the group on that it predicts; registers have no position.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.registers", label="tokens of the group before, registers"):
        """``registers``: how many there are, the largest step in group size."""

        registers: int = 3

    window = Feed.window  # a group's slots hold several tokens

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.register = nn.Parameter(torch.empty(1, config.registers, width))
        nn.init.trunc_normal_(self.register, std=0.02)

    def traits(self, plan: Plan) -> Traits:
        return {}  # registers of a group attend to each other

    def check(self, plan: Plan) -> None:
        if plan.sizes[0] != 1 or any(not 0 <= b - a <= self.register.shape[1] for a, b in zip(plan.sizes, plan.sizes[1:])):
            raise LayoutError(f"groups must start at one position and grow by at most {self.register.shape[1]}, not {plan.sizes}")

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        first = prefix_groups(cond.prefix_BPD)
        rows = len(plan.sequence_BL)
        x, group, place = [cond.prefix_BPD], [first], [nowhere(first).expand(rows, -1)]
        token = self.table(take(data, plan.sequence_BL))
        for g in range(1, plan.groups):
            slots = self._of(token[:, plan.start(g - 1) : plan.start(g)], plan, g)
            x.append(slots.x_BSD)
            group.append(slots.group_BS[:1])
            place.append(slots.position_BS.expand(rows, -1))
        prefix = first.shape[1]
        return Slots(
            self.drop(torch.cat(x, 1), draws),
            torch.cat(group, 1),
            torch.cat(place, 1),
            span(prefix - 1, prefix - 1 + sum(plan.sizes), token.device),
        )

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        return super().step(state, plan, cond, group) if group == 0 else self._of(self.table(state), plan, group)

    def _of(self, token_BmD: Tensor, plan: Plan, group: int) -> Slots:
        more = plan.sizes[group] - plan.sizes[group - 1]
        x = torch.cat([token_BmD, self.register[:, :more].expand(len(token_BmD), -1, -1)], dim=1)
        held = plan.members(group - 1)
        place = torch.cat([held, held.new_full((len(held), more), -1)], dim=1)
        return Slots(x, torch.full_like(place, group), place, span(0, plan.sizes[group], place.device), visibility=Everything())


class Averages(Shifted):
    """Each group is given the mean of the tokens of the group before it, and predicts all its positions from that one slot.

    Next Patch Prediction's feed (arXiv:2412.15321); with one position a group it is ``Shifted``.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.averages", label="averages of patches"):
        """As ``Shifted``."""

    window = Feed.window  # a slot holds several tokens

    def requires(self, plan: Plan) -> Traits:
        many = {"several positions from one hidden state": Trait("yes", "feed")} if plan.sizes[0] > 1 else {}
        return {**super().requires(plan), **many}

    def check(self, plan: Plan) -> None:
        if len(set(plan.sizes)) != 1:
            raise LayoutError(f"averages need groups of one size, not {plan.sizes}")

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        share = plan.sizes[0]
        token = self.table(take(data, plan.sequence_BL)).unflatten(1, (plan.groups, share)).mean(2)[:, :-1]
        x = self.drop(torch.cat([cond.prefix_BPD, token], dim=1), draws)
        first = prefix_groups(cond.prefix_BPD)
        group = torch.cat([first, span(1, plan.groups, x.device)], dim=1)
        stand = self._stand(plan)[:, :-1]
        place = torch.cat([nowhere(first).expand(len(stand), -1), stand], dim=1)
        prefix = first.shape[1]
        return Slots(x, group, place, span(prefix - 1, prefix - 1 + plan.groups, x.device), visibility=Causal(), tokens_per_slot=share)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        share = plan.sizes[0]
        if group == 0:
            first = super().step(state, plan, cond, 0)
            return Slots(first.x_BSD, first.group_BS, first.position_BS, first.output_index, visibility=Causal(), tokens_per_slot=share)
        place = self._stand(plan)[:, group - 1 : group]
        x = self.table(state).mean(1, keepdim=True)
        return Slots(x, torch.full_like(place, group), place, span(0, 1, place.device), visibility=Everything(), tokens_per_slot=share)

    @staticmethod
    def _stand(plan: Plan) -> Tensor:
        return plan.sequence_BL[:, :: plan.sizes[0]] if plan.place_BG is None else plan.place_BG

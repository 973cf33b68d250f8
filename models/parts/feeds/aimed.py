"""Feeds that say which position comes next, so that any order can be learned.

Shapes: B rows, L positions, S slots, P prefix slots, D width, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import nowhere, prefix_groups, span, take
from tokenloom.models.parts.feeds.shifted import Shifted, at
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.rope import Rope, rotate
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal


class TargetAware(Shifted):
    """Shifted tokens with learned positions, to each of which that of the token to be predicted is added (RAR, arXiv:2411.00776).

    A learned slot leads the sequence.  Each slot is modulated by the condition's vector plus an embedding of its index in the sequence.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.target_aware", label="shifted tokens, target-aware"):
        """Spare rows of the tables of tokens, positions and indices, for official tables that have them."""

        spare_tokens: int = 0
        spare_places: int = 0
        spare_steps: int = 0

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width, config.spare_tokens)
        self.lead = nn.Parameter(torch.empty(1, 1, width))
        # Rows of the lead, the condition and all layout positions; the condition's row is -1 + 2.
        self.position = nn.Parameter(torch.empty(1, layout.length + 2 + config.spare_places, width))
        self.position_target = nn.Parameter(torch.empty_like(self.position))
        self.position_step = nn.Parameter(torch.empty(1, layout.length + 1 + config.spare_steps, width))
        for weight in (self.lead, self.position, self.position_target, self.position_step):
            nn.init.trunc_normal_(weight, std=0.02)

    def requires(self, plan: Plan) -> Traits:
        return {"prefix slots": Trait(1, "feed")}

    def slots(self, plan: Plan, prefix: int) -> int:
        return super().slots(plan, prefix) + 1

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        return self._aimed(super().parallel(data, plan, cond, draws), plan.sequence_BL, cond, 0)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        slots = super().step(state, plan, cond, group)
        return replace(self._aimed(slots, plan.members(group), cond, group), visibility=slots.visibility)

    def modulation(self, plan: Plan, cond: Conditioned) -> Tensor:
        return cond.vector_BD[:, None] + self.position_step[:, : 1 + plan.sequence_BL.shape[1]]

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        slots = super().window(token_Bn, entry_Bn, plan, cond)
        last = plan.sequence_BL.shape[1] - 1
        target = at(plan.sequence_BL, entry_Bn + 1)
        x = slots.x_BSD + self.position[0, slots.position_BS + 2] + self.position_target[0, target + 2]
        # The condition stands at index 1 and predicts entry 0: the slot that predicts an entry stands one further.
        step = self.position_step[0, (entry_Bn + 1).clamp_max(last) + 1]
        return replace(slots, x_BSD=x, condition_BSD=cond.vector_BD[:, None] + step)

    def _aimed(self, slots: Slots, target_BN: Tensor, cond: Conditioned, index: int) -> Slots:
        """The slots at their places, aimed at the positions that they predict; the lead stands before the first."""
        if cond.prefix_BPD.shape[1] != 1:
            raise LayoutError("this feed needs a condition of one prefix slot")
        x = slots.x_BSD + self.position[0, slots.position_BS + 2] + self.position_target[0, target_BN + 2]
        step = self.position_step[:, index + 1 : index + 1 + x.shape[1]]
        group, place, reads = slots.group_BS, slots.position_BS, slots.output_index
        if index == 0:
            x = torch.cat([(self.lead + self.position[:, :1]).expand(len(x), -1, -1), x], dim=1)
            step = torch.cat([self.position_step[:, :1], step], dim=1)
            group = torch.cat([group[:, :1] - 1, group], dim=1)
            place = torch.cat([nowhere(place[:, :1]), place], dim=1)
            reads = reads + 1
        return Slots(x, group, place, reads, visibility=slots.visibility, condition_BSD=cond.vector_BD[:, None] + step)


class PositionInstructions(Shifted):
    """Before each token stands an instruction: a learned vector rotated by the position that is to be predicted (RandAR, arXiv:2412.01827).

    In a parallel step instructions attend to the earlier ones of the step; once the tokens are known, all but the first are given
    again between them, so that the cache is that of one token a step.  In the parallel form of such plans the
    instructions that predict are slots of their own, which no other group attends to.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.position_instructions"):
        """``rope`` and ``heads`` are those of the net."""

        rope: Rope.Config = Rope.Config()
        heads: int

    window_slots = 2

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.heads = config.heads
        self.instruction = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.instruction, std=0.02)
        self.rope = config.rope.build(layout, width // config.heads)

    def traits(self, plan: Plan) -> Traits:
        return {"slots in sequence order": Trait("yes" if max(plan.sizes) == 1 else "no", "feed")}

    def requires(self, plan: Plan) -> Traits:
        # Instructions are rotated here as the net rotates queries and keys.
        net = {"attention heads": Trait(self.heads, "feed.heads"), "rotary positions": Trait(self.rope.config, "feed.rope")}
        return {**super().requires(plan), **net}

    def check(self, plan: Plan) -> None:
        """Any plan will do."""

    def slots(self, plan: Plan, prefix: int) -> int:
        # Prefix, all instructions and tokens, and a step's instructions that are given again later.
        return prefix + 2 * plan.sequence_BL.shape[1] + max(plan.sizes)

    def queries(self, place_Bn: Tensor) -> Tensor:
        """Instructions for these places, (B or 1, n, D)."""
        vector = self.instruction.expand(*place_Bn.shape, -1).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return rotate(vector, self.rope(place_Bn)).transpose(1, 2).flatten(2)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        # The sequence is [prefix, q0, t0, q1, t1, …, q(L-1)]: instruction i is slot prefix + 2 i, token i the slot after it.
        place, length = plan.sequence_BL, plan.sequence_BL.shape[1]
        token = self.table(take(data, place[:, :-1]))
        x, both = self._woven(self.queries(place), token, place)
        first = prefix_groups(cond.prefix_BPD)
        # Groups of slots rise by ``scale`` from slot to slot, so that up to L instructions of one step fit between two of them.
        prefix, scale = first.shape[1], length + 1
        rank = torch.cat([first - 1, span(0, 2 * length - 1, x.device)], dim=1) * scale
        x = torch.cat([cond.prefix_BPD, x], dim=1)
        both = torch.cat([nowhere(first).expand(len(both), -1), both], dim=1)
        reads = prefix + 2 * span(0, length, x.device)
        x_drop = self.drop(x, draws)
        if max(plan.sizes) == 1:
            return Slots(x_drop, rank, both, reads, visibility=Causal())
        # The first instruction of a group is the one in the sequence above.  Those after it must not attend to the group's tokens, which
        # stand before them there: they are further slots at the end, just after the first instruction in the order of groups
        # (2 start scale + 1, + 2, …), in a segment of their own that no other group attends to.
        starts = [plan.start(g) for g, size in enumerate(plan.sizes) for _ in range(size)]
        later = torch.tensor([i for i, start in enumerate(starts) if i != start], device=x.device)
        start = torch.tensor(starts, device=x.device)[later][None]
        reads = reads.index_copy(1, later, prefix + 2 * length - 1 + span(0, len(later), x.device))
        return Slots(
            torch.cat([x_drop, self.queries(place[:, later]).expand(len(x), -1, -1)], dim=1),
            torch.cat([rank, 2 * start * scale + later - start], dim=1),
            torch.cat([both, place[:, later]], dim=1),
            reads,
            segment_BS=torch.cat([torch.full_like(rank, -1), start], dim=1),
        )

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        # New slots: [t0 of the group before, q1, t1, …] (its q0 is cached, its other instructions were dropped and come again between
        # the tokens), then this group's instructions, of which the first stays in the cache.
        place, length = plan.members(group), plan.sequence_BL.shape[1]
        start, count, scale = plan.start(group), place.shape[1], length + 1
        if group == 0:
            first = prefix_groups(cond.prefix_BPD)
            x, rank, stand = cond.prefix_BPD, (first - 1) * scale, nowhere(first).expand(len(place), -1)
        else:
            before = plan.members(group - 1)
            x, stand = self._woven(self.queries(before), self.table(state), before, skip=1)
            rank = span(2 * plan.start(group - 1) + 1, 2 * start, x.device) * scale
        held = x.shape[1]
        query = self.queries(place).expand(len(x), -1, -1)
        ask = 2 * start * scale + span(0, count, x.device)
        return Slots(
            torch.cat([x, query], dim=1),
            torch.cat([rank, ask], dim=1),
            torch.cat([stand, place], dim=1),
            span(held, held + count, x.device),
            cached=held + 1,
        )

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        # [t(e), q(e+1), t(e+1), q(e+2), …] for tokens of the entries e, e+1, …; the instruction of the first one is cached.
        place, target = at(plan.sequence_BL, entry_Bn), at(plan.sequence_BL, entry_Bn + 1)
        x = torch.stack([self.table(token_Bn), self.queries(target)], dim=2).flatten(1, 2)
        stand = torch.stack([place, target], dim=2).flatten(1)
        rank = torch.stack([2 * entry_Bn + 1, 2 * entry_Bn + 2], dim=2).flatten(1)
        reads = 1 + 2 * span(0, token_Bn.shape[1], x.device)
        return Slots(x, rank, stand, reads, visibility=Causal())

    def _woven(self, query: Tensor, token: Tensor, place: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """``q0 t0 q1 t1 …`` and their places, without the first ``skip``; the last token may be missing."""
        query = query.expand(len(token), -1, -1)
        missing = query.shape[1] - token.shape[1]
        x = torch.stack([query, torch.cat([token, query[:, query.shape[1] - missing :]], dim=1)], dim=2).flatten(1, 2)
        stand = torch.stack([place, place], dim=2).flatten(1)
        stop = x.shape[1] - missing
        return x[:, skip:stop], stand[:, skip:stop]

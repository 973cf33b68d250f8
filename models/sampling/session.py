"""Decoding as a session: what is decided so far, the caches that belong to it, and the verbs that move it on.

``propose`` runs the net and draws, ``verify`` says what of it holds, ``commit`` makes that permanent, ``rollback`` goes back to a
mark.  Decoders (``sampling.decoders``) are loops over these verbs.  Between opening and ``tokens`` nothing waits for a value of
the device, and with ``shapes="fixed"`` the shapes of a step depend on the size of its group alone.

Shapes: B rows, L positions, n positions of a group, S slots, T slots that the cache has room for, D width.  Under guidance the net has
2 B rows: conditional ones, then null ones.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Condition, Conditions, TokenLayout, Tokens
from tokenloom.models.parts.conditions import Conditioner, stack
from tokenloom.models.parts.feeds.base import Feed, take
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.sequence import State
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.norms import Ahead
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots, visibility_of
from tokenloom.models.parts.visibility import Visibility
from tokenloom.models.sampling.fixed import SlotTable, run_fixed
from tokenloom.models.sampling.proposal import Decoded, Mark, Proposal
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.sampling.trace import Trace

#: ``growing``: attention looks at the filled part of its cache; ``fixed``: at the whole buffer, under a mask, so that shapes stay;
#: ``outside``: there is no cache, as another one runs the net (``proposing``).
Shapes = Literal["growing", "fixed", "outside"]


class Decodable(Protocol):
    """What a session needs of a generator."""

    layout: TokenLayout
    order: Order
    condition: Conditioner
    feed: Feed
    net: SlotNet
    head: Head

    def read(self, states: Tensor, slots: Slots) -> Tensor: ...

    def parts(self, plan: Plan, group: int) -> tuple[SlotNet, Head]: ...


class DecodingSession:
    """One sample for each row of a condition, group after group of a plan."""

    @torch.no_grad()
    def __init__(
        self,
        model: Decodable,
        conditions: Conditions | Condition,
        sampler: Sampler,
        draws: SampleDraws,
        *,
        plan: Plan | None = None,
        given: Tensor | None = None,
        keep_L: Tensor | None = None,
        stop: int | None = None,
        most: int | None = None,
        shapes: Shapes = "growing",
    ) -> None:
        """Open: embed the condition, make the plan, allocate caches.

        ``given`` (B, L, …) tokens are taken instead of drawn ones, at all positions or at those in ``keep_L``: (L,), or (B, L) where the
        order is fixed; for in-painting, prompts and scoring.  ``plan`` replaces the order's.  A row ends with the id ``stop``; what
        follows in it is filled with it.  ``most`` positions are decided, rounded up to whole groups (None: all).  ``shapes="fixed"`` is
        for nets that keep single slots; others have fixed shapes or grow.
        """
        self.model, self.sampler, self.shapes, self.stop = model, sampler, shapes, stop
        self.most = most
        self.net: SlotNet = model.net
        self.trace, self.rows, self.device = Trace(), conditions.rows, next(model.net.parameters()).device
        self.draws = draws.to(self.device, self.rows)
        if keep_L is not None and keep_L.ndim == 2 and type(model.order).around is not Order.around:
            raise ValueError("keep_L of (B, L): given tokens that differ from row to row need an order that is fixed")
        if plan is None:
            plan = model.order.decode(model.layout, self.rows, self.draws, sampler.sizes)
            if sampler.visit is not None:
                plan = replace(plan, sequence_BL=sampler.visit.sequence(model.layout, self.rows, self.draws))
            plan = plan if keep_L is None else model.order.around(plan, keep_L, sampler.sizes)
        self.plan = plan.to(self.device)
        if plan.choice is None:
            self.draws = self.draws.ahead("head", plan.sizes)
        self.given = None if given is None else given.to(self.device)
        self.keep_L = None if keep_L is None else keep_L.to(self.device)
        length = model.layout.length
        self.moments = [Moment(g, plan.groups, plan.start(g), plan.start(g + 1), length) for g in range(plan.groups)]
        self.guided = any(sampler.guidance.on(moment) != 0 for moment in self.moments)
        self.cond = model.condition(conditions)
        if self.guided:
            self.cond = stack(self.cond, model.condition(model.condition.null(conditions)))
        self.both = self.plan.repeat(2) if self.guided else self.plan
        shape = (self.rows, length, *((model.layout.codebooks,) if model.layout.codebooks > 1 else ()))
        latent, dtype = (self.rows, length, model.layout.channels), next(model.net.parameters()).dtype
        ids = model.layout.discrete
        self.data = torch.zeros(shape if ids else latent, dtype=torch.int64 if ids else dtype, device=self.device)
        self.known_BL = torch.zeros((self.rows, length), dtype=torch.bool, device=self.device)
        self.length_B = torch.zeros(self.rows, dtype=torch.int64, device=self.device)
        self.ended_B = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        self._allocate()
        self.state = model.feed.start(self.both, self.cond)
        self.vectors = Ahead(model.feed.modulation(self.both, self.cond))

    def _allocate(self) -> None:
        feed, vector = self.model.feed, self.cond.vector_BD
        room = feed.slots(self.plan, self.model.condition.prefix)
        self.cache = None if feed.passes == "whole" or self.shapes == "outside" else self.model.net.cache(len(vector), room, vector)
        self.used = 0
        self.rank_BT: Tensor | None = None
        self.segment_BT: Tensor | None = None
        self.at_1 = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.fixed = self.shapes == "fixed" and self.model.net.keeps == "slots" and self.cache is not None
        if self.fixed:
            table = SlotTable.empty(len(vector), room, self.at_1)
            self.rank_BT, self.segment_BT = table.rank_BT, table.segment_BT
            for layer in self.cache or []:
                layer.fix(self.at_1)

    # --- verbs

    @torch.no_grad()
    def propose(self, group: int) -> Proposal:
        """Run the net on the slots of a group and draw its tokens (of all positions where the order chooses among them)."""
        proposing = self.proposing(group)
        slots = next(proposing)
        while True:
            try:
                slots = proposing.send(self._run(slots))
            except StopIteration as end:
                return cast(Proposal, end.value)

    def proposing(self, group: int) -> Generator[Slots, Tensor, Proposal]:
        """``propose`` for a caller that runs the net: gives slots, takes their hidden states."""
        moment, rows = self.moments[group], self.rows
        slots = self.model.feed.step(self.state, self.both, self.cond, group)
        self.net, head = self.model.parts(self.plan, group)
        before = self.mark() if head.calls == "several" else None
        h = self.model.read((yield slots), slots)
        place = self.plan.candidates(group)
        teacher = None if self.given is None or self.keep_L is not None else take(self.given, place)
        weight = self.sampler.guidance.on(moment)

        def hidden(h_RnD: Tensor) -> Hidden:
            return Hidden(h_RnD[:rows], h_RnD[rows:] if self.guided else None, weight)

        def predict(added_BnD: Tensor) -> Hidden:
            assert before is not None
            self.rollback(before)
            again = replace(slots, x_BSD=_added(slots, added_BnD.repeat(2, 1, 1) if self.guided else added_BnD))
            return hidden(self.model.read(self._run(again), again))

        drawn = head.draw(hidden(h), self.sampler, moment, self.draws, teacher, None if before is None else predict)
        if before is not None and slots.cached != 0:  # later groups attend to the slots as the feed made them
            self.rollback(before)
            self._run(slots)
        return Proposal(group, slots, h[:rows], drawn, place, drawn.data)

    @torch.no_grad()
    def verify(self, proposal: Proposal) -> Proposal:
        """What of a proposal holds: given tokens in place of drawn ones, and the positions that the order is surest of."""
        place, data, choice = proposal.place_Bn, proposal.data, self.plan.choice
        if self.given is not None and self.keep_L is not None:
            keep = take(self.keep_L.expand(self.rows, -1), place)
            data = torch.where(keep.view(*keep.shape, *[1] * (data.ndim - 2)), take(self.given, place), data)
        if choice is not None:
            sure = choice.confidence(proposal.drawn, proposal.group, self.plan.groups, self.draws)
            known_Bn = take(self.known_BL, place)
            sure = sure.masked_fill(known_Bn, -torch.inf)
            if self.keep_L is not None:  # what is given is known first
                sure = sure.masked_fill(take(self.keep_L.expand(self.rows, -1), place) & ~known_Bn, torch.inf)
            index = sure.topk(self.plan.sizes[proposal.group], dim=1).indices
            place, data = take(place.expand(self.rows, -1), index), take(data, index)
        return replace(proposal, place_Bn=place, data=data)

    @torch.no_grad()
    def commit(self, proposal: Proposal) -> Decoded:
        """Make a proposal permanent."""
        group, place, data = proposal.group, proposal.place_Bn, proposal.data
        if self.stop is not None:
            data = self._ended(data, self.stop)
        data = data.to(self.data.dtype)
        index = place.expand(self.rows, -1)
        self.data.scatter_(1, index.view(*index.shape, *[1] * (data.ndim - 2)).expand_as(data), data)
        self.known_BL.scatter_(1, index, True)
        both = place.repeat(2, 1) if self.guided and len(place) > 1 else place
        pushed = data.repeat(2, *[1] * (data.ndim - 1)) if self.guided else data
        self.state = self.model.feed.push(self.state, self.both, group, pushed, both)
        self.trace.step(self.plan.sizes[group])
        return Decoded(group, place, data, proposal.h_BnD, proposal.drawn.logits, proposal.drawn.data, proposal.slots, self.state)

    def mark(self) -> Mark:
        """The present point."""
        recurrent = tuple(layer.copy() for layer in self.cache or [] if isinstance(layer, State))
        rank, segment = (None if t is None else t.clone() for t in (self.rank_BT, self.segment_BT))
        row = self.known_BL.clone(), self.length_B.clone(), self.ended_B.clone()
        return Mark(self.state, self.used, rank, segment, recurrent, self.data.clone(), *row)

    def rollback(self, mark: Mark) -> None:
        """Go back to a mark: caches are truncated, recurrent states restored, later tokens forgotten."""
        self.state, self.used = mark.state, mark.used
        self.rank_BT, self.segment_BT = (None if t is None else t.clone() for t in (mark.rank_BT, mark.segment_BT))
        for buffer, saved in (
            (self.data, mark.data),
            (self.known_BL, mark.known_BL),
            (self.length_B, mark.length_B),
            (self.ended_B, mark.ended_B),
        ):
            buffer.copy_(saved)
        self.at_1.fill_(mark.used)
        states = iter(mark.recurrent)
        for layer in self.cache or []:
            if isinstance(layer, State):
                layer.restore(next(states))
            else:
                layer.truncate(mark.used)

    def tokens(self) -> Tokens:
        """What is decided."""
        tokens = Tokens(self.data, self.model.layout, None if self.stop is None else self.length_B)
        return self.model.feed.held(tokens, self.plan)

    @property
    def done(self) -> bool:
        """Whether all rows have ended before their last position, or as many as were asked for are decided; this waits for the device
        where a row can end."""
        if self.most is not None and self.trace.tokens >= self.most:
            return True
        return self.stop is not None and bool(self.ended_B.all())

    # --- the net

    def _run(self, slots: Slots) -> Tensor:
        """The net on new slots; afterwards the cache holds those that stay."""
        new = slots.x_BSD.shape[1]
        cached = new if slots.cached is None else slots.cached
        self.trace.call(new)
        slots = replace(slots, condition_BSD=self.vectors.part(self.used, new))
        if self.cache is None:
            return self.net(slots, self._visibility(slots), self.cond)
        if self.fixed:
            return self._fixed(slots, new, cached)
        ranks = slots.group_BS if self.rank_BT is None else beside(self.rank_BT, slots.group_BS)
        segment = slots.segment_BS
        if segment is not None and self.rank_BT is not None:  # what is cached is hidden from none
            segment = beside(torch.full_like(self.rank_BT, -1), segment)
        states = self.net(slots, self._visibility(slots, ranks, segment), self.cond, self.cache)
        self.used += cached
        self.rank_BT = ranks[:, : self.used]
        for layer in self.cache:
            layer.truncate(self.used)
        return states

    def _visibility(self, slots: Slots, key_BT: Tensor | None = None, segment_BT: Tensor | None = None) -> Visibility:
        return visibility_of(slots, self.plan.window, self.cond.seen_BP, key_BT, segment_BT)

    def _fixed(self, slots: Slots, new: int, cached: int) -> Tensor:
        rank, segment = self.rank_BT, self.segment_BT
        assert rank is not None
        assert segment is not None
        states = run_fixed(self.net, slots, self.cond, self.cache, SlotTable(rank, segment, self.at_1), self.plan.window)
        self.used += cached
        self.at_1 += cached
        return states

    def _ended(self, data_Bn: Tensor, stop: int) -> Tensor:
        """The tokens with ``stop`` after a row's end; lengths count what is before it and the one that ends it."""
        hit_Bn = data_Bn == stop
        after_Bn = self.ended_B[:, None] | ((hit_Bn.long().cumsum(1) - hit_Bn.long()) > 0)
        self.length_B += (~after_Bn).sum(1)
        self.ended_B |= hit_Bn.any(1)
        return torch.where(after_Bn, stop, data_Bn)


def _added(slots: Slots, added_RnD: Tensor) -> Tensor:
    """The slots' inputs with something added to those that are read."""
    if slots.output_index.ndim != 2 or slots.tokens_per_slot != 1:
        raise ConfigError("head: this head runs the net again within a group, for which each position needs a slot of its own")
    index = slots.output_index.expand(len(added_RnD), -1).unsqueeze(-1).expand_as(added_RnD)
    return slots.x_BSD.expand(len(added_RnD), -1, -1).scatter_add(1, index, added_RnD)


def beside(first_BT: Tensor, second_BS: Tensor) -> Tensor:
    """Both along the last axis, either of which may have one row for all."""
    rows = max(len(first_BT), len(second_BS))
    return torch.cat([first_BT.expand(rows, -1), second_BS.expand(rows, -1)], dim=1)

"""Next-scale feeds without memory: a scale is given the sum of the smaller ones, and attends to nothing but itself.

Shapes: B rows, L positions of all scales, S slots, n members of a group, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.next_scale import NextScale
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything

if TYPE_CHECKING:
    from tokenloom.models.parts.quantizers.multiscale import MultiScale


class Markov(NextScale):
    """``NextScale`` for plans of window 0: what a scale is given is all that is left of the earlier ones, and no cache outlives a scale."""

    @dataclass(frozen=True, kw_only=True)
    class Config(NextScale.Config, tag="feed.markov_scale", label="codes so far, Markov"):
        """As ``NextScale``."""

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> Markov:
            plain = super().build(layout, width, tokenizer)  # says what is wrong with a tokenizer
            return self.of(layout, width, plain.quantizer)

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> Markov:
            """The feed on this quantizer."""
            return Markov(self, layout, width, quantizer)

    def check(self, plan: Plan) -> None:
        """Raise ``LayoutError`` for a plan in which scales see others."""
        if plan.window != 0:
            raise LayoutError(f"this feed keeps nothing of earlier scales: the order's window must be 0, not {plan.window}")

    def slots(self, plan: Plan, prefix: int) -> int:
        return max(self.layout.scale_sizes)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        return super().parallel(data, plan, cond, draws)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        self.check(plan)
        return replace(super().step(state, plan, cond, group), cached=0)


@dataclass(frozen=True)
class Partly:
    """State of decoding: the sum of all whole scales, the input of the scale at hand (None: the first), its tokens and which are known."""

    f_hat: Tensor
    input_BnC: Tensor | None
    ids_BL: Tensor
    known_BL: Tensor


class MaskedScales(Markov):
    """A scale in several steps: once something of it is known, its positions are also given their token or [MASK] (HMAR, arXiv:2506.04421).

    Known tokens enter as their code vectors, under the map that embeds the codes so far; one vector stands for [MASK].  Groups are parts of
    scales.  In the parallel form the slots of a scale stand there once for each of its groups, with what is known before that group, so
    that one pass predicts all steps of all scales.  In masked training (a plan with known positions) that vector alone gets a gradient.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Markov.Config, tag="feed.refined_scale", label="codes so far, then codes or [MASK]"):
        """As ``NextScale``."""

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> MaskedScales:
            return MaskedScales(self, layout, width, quantizer)

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        super().__init__(config, layout, width, quantizer)
        self.open = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.open, std=(1 / 3 / width) ** 0.5)
        sizes = layout.scale_sizes
        self.ranges = [(sum(sizes[:s]), sum(sizes[: s + 1])) for s in range(len(sizes))]

    def later(self, plan: Plan, group: int) -> bool:
        """Whether a group is a later step of its scale, or one of masked training: some of its scale may be known before it."""
        return plan.known_BL is not None or plan.start(group) > self.ranges[self._scale(plan, group)][0]

    def known(self, ids: Tensor, known: Tensor) -> Tensor:
        """(B, n, D) what says which tokens are known already."""
        weight = self.embed.weight
        code = F.linear(F.embedding(ids, self.quantizer.codebook.weight).to(weight.dtype), weight)
        return torch.where(known.unsqueeze(-1), code, self.open)

    def traits(self, plan: Plan) -> Traits:
        return {"known positions": Trait("yes", "feed"), "predictions of all open positions": Trait("yes", "feed")}

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        base = super().parallel(data, plan, cond, draws).x_BSD
        ids, group_BL, masked = data, plan.group_BL, plan.known_BL is not None
        x, group, place, reads, count = [], [], [], [], 0
        for g in range(plan.groups):
            start, stop = self.ranges[self._scale(plan, g)]
            slots = base[:, start:stop]
            if self.later(plan, g):
                known = (group_BL[:, start:stop] < g) if plan.known_BL is None else plan.known_BL[:, start:stop]
                given = self.known(ids[:, start:stop], known)
                slots = slots.detach() + torch.where(known.unsqueeze(-1), given.detach(), given) if masked else slots + given
            x.append(slots)
            here = torch.arange(start, stop, device=data.device)[None]
            group.append(torch.full_like(here, g))
            place.append(here)
            reads.append(plan.members(g) - start + count)
            count += stop - start
        return Slots(torch.cat(x, 1), torch.cat(group, 1), torch.cat(place, 1), torch.cat(reads, 1))

    def start(self, plan: Plan, cond: Conditioned) -> Any:
        f_hat = self.quantizer.start(len(cond.vector_BD))
        ids = torch.zeros((len(f_hat), self.layout.length), dtype=torch.int64, device=f_hat.device)
        return Partly(f_hat, None, ids, torch.zeros_like(ids, dtype=torch.bool))

    def step(self, state: Partly, plan: Plan, cond: Conditioned, group: int) -> Slots:
        self.check(plan)
        start, stop = self.ranges[self._scale(plan, group)]
        place = torch.arange(start, stop, device=state.ids_BL.device)[None]
        base = self._first(cond) if state.input_BnC is None else self.embed(state.input_BnC)
        x = self._placed(base, place)
        if self.later(plan, group):
            x = x + self.known(state.ids_BL[:, start:stop], state.known_BL[:, start:stop])
        return Slots(x, torch.full_like(place, group), place, plan.candidates(group) - start, visibility=Everything(), cached=0)

    def push(self, state: Partly, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> Any:
        index = place_Bn.expand(len(data), -1)
        ids, known = state.ids_BL.scatter(1, index, data), state.known_BL.scatter(1, index, True)
        scale = self._scale(plan, group)
        start, stop = self.ranges[scale]
        if plan.start(group + 1) < stop:
            return Partly(state.f_hat, state.input_BnC, ids, known)
        f_hat, following = self.quantizer.accumulate(state.f_hat, scale, ids[:, start:stop])
        return Partly(f_hat, following, ids, known)

    def _scale(self, plan: Plan, group: int) -> int:
        """The scale of a group; groups follow the scales."""
        start = plan.start(group)
        scale = next(s for s, (_, stop) in enumerate(self.ranges) if start < stop)
        if plan.start(group + 1) > self.ranges[scale][1]:
            raise LayoutError(f"a group must lie inside a scale, {plan.sizes} does not fit scales of {self.layout.scale_sizes}")
        return scale

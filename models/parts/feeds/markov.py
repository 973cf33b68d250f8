"""Next-scale feeds without memory: a scale is given the sum of the smaller ones, and attends to nothing but itself.

Shapes: B rows, L positions of all scales, S slots, n members of a group, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.embedding import Ids
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
    """A scale in several steps: each of its positions is also given its token or [MASK] (HMAR, arXiv:2506.04421).

    Groups are parts of scales.  In the parallel form the slots of a scale stand there once for each of its groups, with what is
    known before that group, so that one pass predicts all steps of all scales.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Markov.Config, tag="feed.masked_scale", label="codes so far, tokens or [MASK]"):
        """As ``NextScale``."""

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> MaskedScales:
            return MaskedScales(self, layout, width, quantizer)

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: MultiScale) -> None:
        super().__init__(config, layout, width, quantizer)
        self._known_tokens(layout, width)
        sizes = layout.scale_sizes
        self.ranges = [(sum(sizes[:s]), sum(sizes[: s + 1])) for s in range(len(sizes))]

    def _known_tokens(self, layout: TokenLayout, width: int) -> None:
        self.mask = layout.vocabulary  # the row after the vocabulary
        self.table = Ids(layout, width, spare=1)

    def later(self, plan: Plan, group: int) -> bool:
        """Whether the slots of a group are also given what is known of its scale."""
        return True

    def known(self, ids: Tensor, known: Tensor) -> Tensor:
        """(B, n, D) what says which tokens are known already."""
        return self.table(torch.where(known, ids, cast(Any, self.mask)))

    def traits(self, plan: Plan) -> Traits:
        return {"known positions": Trait("yes", "feed"), "predictions of all open positions": Trait("yes", "feed")}

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        base = super().parallel(data, plan, cond, draws).x_BSD
        ids, group_BL = data, plan.group_BL
        x, group, place, reads, count = [], [], [], [], 0
        for g in range(plan.groups):
            start, stop = self.ranges[self._scale(plan, g)]
            slots = base[:, start:stop]
            if self.later(plan, g):
                known = (group_BL[:, start:stop] < g) if plan.known_BL is None else plan.known_BL[:, start:stop]
                slots = self.joined(plan, slots, self.known(ids[:, start:stop], known), known)
            x.append(slots)
            here = torch.arange(start, stop, device=data.device)[None]
            group.append(torch.full_like(here, g))
            place.append(here)
            reads.append(plan.members(g) - start + count)
            count += stop - start
        return Slots(torch.cat(x, 1), torch.cat(group, 1), torch.cat(place, 1), torch.cat(reads, 1))

    def joined(self, plan: Plan, base_BnD: Tensor, given_BnD: Tensor, known_Bn: Tensor) -> Tensor:
        """Slots of the codes so far and of what is known of their scale."""
        return base_BnD + given_BnD

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


class CodedScales(MaskedScales):
    """The same with known tokens as their code vectors, under the map that embeds the codes so far, and one vector for [MASK]."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskedScales.Config, tag="feed.coded_scales", label="codes so far, codes or [MASK]"):
        """As ``NextScale``."""

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> CodedScales:
            return CodedScales(self, layout, width, quantizer)

    def _known_tokens(self, layout: TokenLayout, width: int) -> None:
        self.open = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.open, std=(1 / 3 / width) ** 0.5)

    def known(self, ids: Tensor, known: Tensor) -> Tensor:
        weight = self.embed.weight
        code = F.linear(F.embedding(ids, self.quantizer.codebook.weight).to(weight.dtype), weight)
        return torch.where(known.unsqueeze(-1), code, self.open)


class RefinedScales(CodedScales):
    """The same, but the first step of a scale is given the codes so far alone.  In masked training (a plan with known positions) the vector
    of [MASK] is all that gets a gradient."""

    @dataclass(frozen=True, kw_only=True)
    class Config(CodedScales.Config, tag="feed.refined_scale", label="codes so far, then codes or [MASK]"):
        """As ``NextScale``."""

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> RefinedScales:
            return RefinedScales(self, layout, width, quantizer)

    def later(self, plan: Plan, group: int) -> bool:
        return plan.known_BL is not None or plan.start(group) > self.ranges[self._scale(plan, group)][0]

    def joined(self, plan: Plan, base_BnD: Tensor, given_BnD: Tensor, known_Bn: Tensor) -> Tensor:
        if plan.known_BL is None:
            return base_BnD + given_BnD
        return base_BnD.detach() + torch.where(known_Bn.unsqueeze(-1), given_BnD.detach(), given_BnD)

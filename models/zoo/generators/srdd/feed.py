"""A next-scale feed without memory that may leave scales out, and says what a scale would be given once it is partly decided.

Shapes: B rows, n positions of a scale, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout, Tokens
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import span, take
from tokenloom.models.parts.feeds.markov import Markov
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots

if TYPE_CHECKING:
    from tokenloom.models.parts.quantizers.multiscale import MultiScale


class Refinable(Markov):
    """``Markov`` for plans of some of the scales (SRDD, arXiv:2509.22636).

    A scale that is left out adds nothing to the sum of codes; tokens of some scales are told by the grids of their layout.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Markov.Config, tag="feed.refinable_scale", label="codes so far, refined"):
        """As ``NextScale``."""

        def of(self, layout: TokenLayout, width: int, quantizer: MultiScale) -> Refinable:
            if len(set(layout.scale_sizes)) < len(layout.scale_sizes):
                raise LayoutError(f"this feed tells scales by their sizes, which must differ, not {layout.scale_sizes}")
            return Refinable(self, layout, width, quantizer)

    def scales_of(self, plan: Plan) -> list[int]:
        """The scale of each group."""
        known = {size: scale for scale, size in enumerate(self.layout.scale_sizes)}
        if any(size not in known for size in plan.sizes):
            raise LayoutError(f"this feed needs groups that are whole scales of {self.layout.scale_sizes} positions, not {plan.sizes}")
        return [known[size] for size in plan.sizes]

    def check(self, plan: Plan) -> None:
        super().check(plan)
        self.scales_of(plan)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        if plan.sizes == self.layout.scale_sizes:
            return super().parallel(data, plan, cond, draws)
        self.check(plan)
        slots, state = [], self.start(plan, cond)
        for group in range(plan.groups):
            slots.append(self.step(state, plan, cond, group))
            place = plan.members(group)
            state = self.push(state, plan, group, take(data, place), place)
        x, groups, places = (torch.cat(parts, 1) for parts in zip(*((s.x_BSD, s.group_BS, s.position_BS) for s in slots)))
        return Slots(x, groups, places, span(0, x.shape[1], x.device))

    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> tuple[Tensor, Tensor | None]:
        scales = [*self.scales_of(plan), len(self.layout.grids) - 1]
        f_hat = self.quantizer.added(state[0], scales[group], data)
        return f_hat, self.quantizer.shown(f_hat, scales[group + 1])

    def refined(self, ids_Bn: Tensor, kept_Bn: Tensor) -> Tensor:
        """(B, n, D) what the kept tokens of a scale add to the slots of that scale, were it given the sum with them in it."""
        quantizer, scale = self.quantizer, self.layout.scale_sizes.index(ids_Bn.shape[1])
        sum_BCHW = quantizer.added(quantizer.start(len(ids_Bn)), scale, ids_Bn, kept_Bn)
        return F.linear(quantizer.shown(sum_BCHW, scale).to(self.embed.weight.dtype), self.embed.weight)

    def held(self, tokens: Tokens, plan: Plan) -> Tokens:
        if plan.sizes == self.layout.scale_sizes:
            return tokens
        grids = tuple(self.layout.grids[scale] for scale in self.scales_of(plan))
        return replace(tokens, data=take(tokens.data, plan.sequence_BL), layout=replace(self.layout, grids=grids))

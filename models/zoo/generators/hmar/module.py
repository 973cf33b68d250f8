"""Two towers on one trunk: one predicts whole scales, the other refines scales that are partly known.

Shapes: B rows, L positions, N predicted positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Conditions, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator, read
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.feeds.markov import RefinedScales
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.zoo.generators.hmar.order import SteppedScales
from tokenloom.models.zoo.generators.hmar.tower import Tower


class TwoTowers(GroupGenerator):
    """Next-scale prediction, and a second tower for the later steps of a scale (HMAR, arXiv:2506.04421).

    Training has two parts: all but the second tower learns whole scales; then the last blocks, the last norm and the head are copied, and
    the copies and the vector of [MASK] learn masked scales, while everything else stays as it is.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.two_towers"):
        """``late``: blocks of the second tower that are its own."""

        late: int = 8

    config: Config

    def __init__(self, config: Config, layout: TokenLayout, classes: int, tokenizer: Any = None) -> None:
        super().__init__(config, layout, classes, tokenizer)
        if not isinstance(self.feed, RefinedScales) or not isinstance(self.order, SteppedScales) or not isinstance(self.net, Transformer):
            raise ConfigError("order, feed, net: two towers need scales in steps (stepped_scales, refined_scale) and a transformer")
        head = config.head.build(layout, config.net.output_width, self.feed)
        self.refiner = nn.ModuleDict({"net": Tower(self.net, config.late, layout), "head": head})

    @property
    def _feed(self) -> RefinedScales:
        return cast(RefinedScales, self.feed)

    def parts(self, plan: Plan, group: int) -> tuple[SlotNet, Head]:
        found = self.refiner if self._feed.later(plan, group) else {"net": self.net, "head": self.head}
        return cast(SlotNet, found["net"]), cast(Head, found["head"])

    def _later(self, plan: Plan) -> list[bool]:
        """For each entry of the sequence, whether the second tower predicts it."""
        return [self._feed.later(plan, group) for group, size in enumerate(plan.sizes) for _ in range(size)]

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None, net: Any = None) -> Tensor:
        later = self._later(plan)
        if net is not None or not any(later):
            return super().parallel(data, plan, cond, draws, net)
        if plan.known_BL is not None:  # masked training: the condition is learned by then
            cond = replace(cond, vector_BD=cond.vector_BD.detach())
        slots = self.feed.parallel(data, plan, cond, draws)
        visibility = visibility_of(slots, plan.window, cond.seen_BP)
        h_BND = read(cast(Tower, self.refiner["net"])(slots, visibility, cond, draws=draws), slots.output_index)
        if all(later):
            return h_BND
        whole_BND = read(self.net(slots, visibility, cond, draws=draws), slots.output_index)
        return torch.where(torch.tensor(later, device=h_BND.device)[:, None], h_BND, whole_BND)

    def nll(
        self,
        data: Tensor,
        conditions: Conditions,
        plan: Plan,
        draws: Draws | None,
        target: Tensor | None = None,
        noise: Draws | None = None,
    ) -> Tensor:
        later, second = self._later(plan), cast(Head, self.refiner["head"])
        if not any(later):
            return super().nll(data, conditions, plan, draws, target, noise)
        h_BND = self(data, conditions, plan, draws)
        target = take(data if target is None else target, plan.sequence_BL.to(data.device))
        if all(later):
            return second.loss(h_BND, target, noise)
        late_N = torch.tensor(later, device=data.device)
        return torch.where(late_N, second.loss(h_BND, target, noise), self.head.loss(h_BND, target, noise))

    # --- training in two parts

    def frozen_parameters(self, progress: float) -> tuple[str, ...]:
        second = ("refiner.", "feed.open")
        if progress < cast(SteppedScales, self.order).start:
            return second
        return tuple(sorted({name for name, _ in self.named_parameters() if not name.startswith(second)}))

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Copy, after the last step of the first part."""
        start = cast(SteppedScales, self.order).start
        if draws.progress < start <= (draws.step + 1) / max(1, draws.steps):
            cast(Tower, self.refiner["net"]).copy()
            with torch.no_grad():
                for copy, given in zip(self.refiner["head"].parameters(), self.head.parameters(), strict=True):
                    copy.copy_(given)
        return {}

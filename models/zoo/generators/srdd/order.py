"""Scales of which decoding may leave out some.  Shapes: L positions of all scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.fixed import Scales
from tokenloom.models.parts.orders.sizes import Count, Sizes, Steps
from tokenloom.models.parts.plan import Plan


@dataclass(frozen=True, kw_only=True)
class FewerScales(Order, tag="order.fewer_scales", label="scales, as many as asked for"):
    """Whole scales, small to large, that see nothing but themselves; decoding takes all, or as many as steps are asked for, from the
    first to the last (SRDD, arXiv:2509.22636)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return Scales(window=0).plan(layout)

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        whole = self.plan(layout)
        if sizes is None:
            return whole
        if not isinstance(sizes, Steps | Count) or not 2 <= sizes.count <= whole.groups:
            asked = getattr(sizes, "count", sizes)
            raise ConfigError(f"sample.steps={asked}: from 2 to {whole.groups}, the number of scales of these tokens")
        chosen = [round(i * (whole.groups - 1) / (sizes.count - 1)) for i in range(sizes.count)]
        return Plan(torch.cat([whole.members(i) for i in chosen], dim=1), tuple(whole.sizes[i] for i in chosen), whole.window)

"""A causal transformer whose every state can be combined with a query of any position.

Shapes: B rows, S slots, N pairs of a state and a position, L positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.mlp import ResidualMLP
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class QueryHeads(Transformer):
    """State plus query of a position, through a few residual MLPs (a head over the grid, Heptapod, arXiv:2510.06673).

    As a net it points each slot at the position after its own in storage order, so it is for raster order.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config, tag="net.query_heads", label="transformer, query heads"):
        """``blocks`` residual MLPs after the query is added."""

        blocks: int = 2

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__(config, layout)
        self.position_query = nn.Parameter(torch.empty(layout.length, config.width))
        nn.init.trunc_normal_(self.position_query, std=0.02)
        self.decode = ResidualMLP(config.mlp, config.width, config.blocks)
        self.rms = nn.RMSNorm(config.width, eps=1e-5)

    def traits(self, plan: Plan) -> Traits:
        return {**super().traits(plan), "states with queries of positions": Trait("yes", "net")}

    def trunk(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """States (B, S, D) that are not pointed anywhere."""
        return super().forward(slots, visibility, cond, cache, draws)

    def point(self, h_BND: Tensor, place: Tensor) -> Tensor:
        """(B, N, D) what each state says of a position, (N,) or (B or 1, N)."""
        return self.rms(self.decode(h_BND + self.position_query[place]))

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), each of the position after its slot's own."""
        h_BSD = self.trunk(slots, visibility, cond, cache, draws)
        return self.point(h_BSD, (slots.position_BS + 1).clamp_max(len(self.position_query) - 1))

"""A trunk with branches: several hidden states of each slot, one a head.

Shapes: B rows, S slots, K states, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import SlotNet, modulation_of
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class Branched(SlotNet):
    """The trunk's normed output is the first state; each branch, some more blocks on the trunk's raw output, gives one more.

    NAR (arXiv:2503.10696) and other models with several prediction heads.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.branched", label="transformer, a branch a direction"):
        """``branches`` are the numbers of blocks of each branch, made as the trunk's."""

        trunk: Transformer.Config
        branches: tuple[int, ...] = (1,)

        @property
        def width(self) -> int:  # type: ignore[override]
            """That of the trunk."""
            return self.trunk.width

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        if not config.branches:
            raise ConfigError("net.branches=(): give at least one, or use its trunk alone")
        self.trunk = cast(Transformer, config.trunk.build(layout))
        self.branches = nn.ModuleList([replace(config.trunk, depth=depth).build(layout) for depth in config.branches])

    def traits(self, plan: Plan) -> Traits:
        return {"hidden states of a slot": Trait(1 + len(self.branches), "net.branches")}

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        nets = [self.trunk, *self.branches]
        return [layer for net in nets for layer in cast(Transformer, net).cache(rows, slots, like)]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, K, S, D)."""
        modulation = modulation_of(slots, cond)
        left = list(cache or [])

        def run(net: Transformer, x_BSD: Tensor) -> Tensor:
            mine = left[: len(net.attention)]
            del left[: len(net.attention)]
            return net.stack(x_BSD, slots.position_BS, visibility, modulation, mine, draws)

        trunk = run(self.trunk, slots.x_BSD)
        states = [self.trunk.norm.last(trunk, modulation)]
        for branch in self.branches:
            net = cast(Transformer, branch)
            states.append(net.norm.last(run(net, trunk), modulation))
        return torch.stack(states, dim=1)

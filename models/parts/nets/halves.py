"""Two transformers one after the other, with positions of their own (xAR, arXiv:2502.20388).

Shapes: B rows, S slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


class Halves(SlotNet):
    """The first transformer, a linear map, learned positions, the second transformer; both attend alike."""

    keeps: ClassVar[Literal["slots", "state", "other"]] = "slots"

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.halves"):
        """Each a transformer with a last norm of its own, of one width, since both read one condition."""

        first: Transformer.Config
        second: Transformer.Config

        def __post_init__(self) -> None:
            if self.first.width != self.second.width:
                raise ConfigError(f"net.second.width={self.second.width}: must be that of net.first, {self.first.width}")

        @property
        def width(self) -> int:  # type: ignore[override]
            """Of both."""
            return self.first.width

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        self.first, self.second, self.depth = config.first.build(layout), config.second.build(layout), config.first.depth
        self.between = nn.Linear(config.width, config.width)
        nn.init.xavier_uniform_(self.between.weight)
        nn.init.zeros_(self.between.bias)
        self.position = nn.Parameter(torch.empty(layout.length, config.width))
        nn.init.normal_(self.position, std=0.02)

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        return [*self.first.cache(rows, slots, like), *self.second.cache(rows, slots, like)]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D)."""
        depth = self.depth
        own, other = (None, None) if cache is None else (cache[:depth], cache[depth:])
        visibility = Transformer.evaluated(visibility, slots.x_BSD, own)
        h = self.between(self.first(slots, visibility, cond, own, draws)) + self.position[slots.position_BS]
        return self.second(replace(slots, x_BSD=h), visibility, cond, other, draws)

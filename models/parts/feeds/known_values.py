"""Known values: positions hold what is known as values, beside a buffer of condition slots.

Shapes: B rows, L positions, S slots, P buffer slots, D width, Q channels of a token, V levels of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, Tokenizer, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.masked import Whole
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.quantizers.dimensionwise import Dimensionwise, normal_levels
from tokenloom.models.parts.slots import Slots


class KnownValues(Whole):
    """MAR's feed (arXiv:2406.11838): values through a linear map, positions, a layer norm; the condition's vector fills a buffer.

    Group 0 is what is known and the buffer, group 1 the rest, so that what is known attends to what is known.  Ids of several
    channels stand for the values of the tokenizer's levels, which travel here (TokenBridge, arXiv:2503.16430).
    """

    values: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Whole.Config, tag="feed.known_values"):
        """``buffer`` slots of the condition."""

        buffer: int = 64
        eps: float = 1e-6

    def __init__(self, config: Config, layout: TokenLayout, width: int, quantizer: Any) -> None:
        super().__init__()
        self.layout, self.buffer = layout, config.buffer
        channels = layout.channels or layout.codebooks
        if layout.discrete:
            if not isinstance(quantizer, Dimensionwise.Config):
                raise LayoutError("this feed needs latents, or ids a channel, such as those of the recipe tokenbridge")
            levels = normal_levels(quantizer.levels, quantizer.clip).float()
            self.register_buffer("values", levels.expand(channels, -1).clone())
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.empty(1, config.buffer + layout.length, width))
        self.norm = nn.LayerNorm(width, eps=config.eps)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        nn.init.normal_(self.position, std=0.02)

    def traits(self, plan: Plan) -> Traits:
        return {**super().traits(plan), "buffer slots before the tokens": Trait(self.buffer, "feed.buffer")}

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Copy the values of the tokenizer's levels."""
        if self.layout.discrete:
            quantizer = cast(Dimensionwise, tokenizer.quantizer)
            every = torch.arange(self.values.shape[1], device=quantizer.mean.device)[:, None].expand(-1, len(self.values))
            self.values.copy_(quantizer.dequantise(every).T)

    def of_ids(self, data: Tensor) -> Tensor:
        """Values (B, L, Q) of ids, or latents as they are."""
        if not self.layout.discrete:
            return data
        ids = data if data.ndim == 3 else data.unsqueeze(-1)
        return self.values[torch.arange(ids.shape[2], device=ids.device), ids]

    def of_known(self, data: Tensor, known_BL: Tensor, target_BN: Tensor, cond: Conditioned, draws: Draws | None) -> Slots:
        token = self.embed(self.of_ids(data).to(self.embed.weight.dtype))
        buffer = cond.vector_BD[:, None].expand(-1, self.buffer, -1)
        x = self.norm(torch.cat([buffer, token], dim=1) + self.position)
        unknown = torch.cat([known_BL.new_zeros(len(known_BL), self.buffer), ~known_BL], dim=1).long()
        place = torch.arange(-self.buffer, self.layout.length, device=x.device).clamp_min(-1)[None]
        return Slots(x, unknown, place, target_BN + self.buffer, cached=0)

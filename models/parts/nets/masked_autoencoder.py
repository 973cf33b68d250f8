"""Encoder of what is known, decoder of everything (MAE, arXiv:2111.06377; MAR, arXiv:2406.11838).

Shapes: B rows, S slots of which the first are a buffer, L positions, D width of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything, Visibility


class MaskedAutoencoder(SlotNet):
    """The encoder's slots attend to those of group 0 alone; the decoder has [MASK] in place of all others and attends to everything.

    The encoder runs over all slots with a mask instead of over the known ones alone, whose number differs by row.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.masked_autoencoder"):
        """``encoder`` and ``decoder`` may differ in width; ``buffer`` as the feed's."""

        encoder: Transformer.Config
        decoder: Transformer.Config
        buffer: int = 64

        @property
        def width(self) -> int:  # type: ignore[override]
            """The encoder's."""
            return self.encoder.width

        @property
        def output_width(self) -> int:
            """The decoder's."""
            return self.decoder.width

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        width, self.buffer = config.output_width, config.buffer
        self.encoder, self.decoder = config.encoder.build(layout), config.decoder.build(layout)
        self.between = nn.Linear(config.width, width)
        nn.init.xavier_uniform_(self.between.weight)
        nn.init.zeros_(self.between.bias)
        self.mask = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, config.buffer + layout.length, width))
        self.position_out = nn.Parameter(torch.empty(1, layout.length, width))
        for weight in (self.mask, self.position, self.position_out):
            nn.init.normal_(weight, std=0.02)

    def traits(self, plan: Plan) -> Traits:
        return {"buffer slots before the tokens": Trait(self.buffer, "net.buffer")}

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        return []

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D); those of the buffer are not for reading."""
        known = self.between(self.encoder(slots, visibility, cond, None, draws))
        x = torch.where((slots.group_BS > 0).unsqueeze(-1), self.mask, known) + self.position
        h = self.decoder(replace(slots, x_BSD=x), Everything(), cond, None, draws)
        return h + nn.functional.pad(self.position_out, (0, 0, self.buffer, 0))

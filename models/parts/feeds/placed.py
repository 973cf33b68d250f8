"""Shifted tokens at absolute places: embeddings times the root of the width, plus a vector of each place in the sequence.

Shapes: B rows, S slots, D width, R rows of the table of places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import dropout
from tokenloom.models.parts.feeds.shifted import Shifted
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots


class Placed(Shifted):
    """The input of the first transformer (arXiv:1706.03762, sections 3.4 and 3.5): the condition's slots have places too."""

    position: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.placed", label="shifted tokens, absolute places"):
        """``rows`` of the table, whose ``first`` belongs to the first slot (fairseq leaves two out); learned, or of fixed sinusoids."""

        rows: int
        first: int = 0
        places: Literal["learned", "sinusoidal"] = "learned"

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        if layout.length + config.first > config.rows:
            raise LayoutError(f"feed.rows={config.rows}: fewer than {config.first} and the {layout.length} positions")
        self.first, self.scale = config.first, math.sqrt(width)
        if config.places == "learned":
            self.position = nn.Parameter(torch.empty(config.rows, width))
            nn.init.normal_(self.position, std=width**-0.5)
        else:
            self.register_buffer("position", sinusoids(config.rows, width), persistent=False)

    def drop(self, x_BSD: Tensor, draws: Draws | None) -> Tensor:
        return x_BSD  # only after the places are added

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        slots = super().parallel(data, plan, cond, draws)
        return replace(slots, x_BSD=dropout(self._placed(slots.x_BSD, 0), self.rate, draws))

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        slots = super().step(state, plan, cond, group)
        return replace(slots, x_BSD=self._placed(slots.x_BSD, 0 if group == 0 else cond.prefix_BPD.shape[1] + group - 1))

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        slots = super().window(token_Bn, entry_Bn, plan, cond)
        return replace(slots, x_BSD=slots.x_BSD * self.scale + self.position[self.first + cond.prefix_BPD.shape[1] + entry_Bn])

    def _placed(self, x_BSD: Tensor, start: int) -> Tensor:
        at = self.first + start
        return x_BSD * self.scale + self.position[at : at + x_BSD.shape[1]]


def sinusoids(rows: int, width: int) -> Tensor:
    """Sines of all frequencies, then cosines, (R, D): from 1 down to 1/10000 in equal ratios, as fairseq has them."""
    half = width // 2
    angle = torch.arange(rows)[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    return nn.functional.pad(table, (0, width % 2))

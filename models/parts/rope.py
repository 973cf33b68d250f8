"""Rotary positions on two axes.

Shapes: P positions (L of them plus none for prefixes), S slots, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.protocols import TokenLayout


class Rope2D(nn.Module):
    """Rotary embedding (arXiv:2104.09864): half of the pairs turn with the row, half with the column.

    Pairs are interleaved (E/2 pairs of neighbours).  Slots without a place (conditions) get cosine and sine of
    zero, which zeroes their query and key: LlamaGen trains so, and its weights need it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="rope.grid"):
        """``base`` of the geometric frequencies; with a ``reach`` every grid is spread, in whole steps, over one whose longer side has
        that many positions (Infinity)."""

        base: float = 10000.0
        reach: int = 0

        def build(self, layout: TokenLayout, head_width: int) -> Rope2D:
            """Tables for all positions of the layout."""
            return Rope2D(self, layout, head_width)

    turn: Tensor

    def __init__(self, config: Config, layout: TokenLayout, head_width: int) -> None:
        super().__init__()
        if head_width % 4:
            raise ValueError(f"head width {head_width} is not divisible by 4, which 2-D rotary positions need")
        half = head_width // 2
        frequency = 1.0 / config.base ** (torch.arange(0, half, 2)[: half // 2].float() / half)
        row, column = layout.positions[:, 2].float(), layout.positions[:, 3].float()
        if config.reach:
            size = torch.tensor(layout.grids, dtype=torch.float32)  # (scales, 2)
            step = size[-1] * (config.reach / size[-1].max()) / size
            row, column = (torch.round(x * step[layout.positions[:, 1], i]) for i, x in enumerate((row, column)))
        angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=1)  # (L, E/2)
        table = torch.stack([angle.cos(), angle.sin()], dim=-1)
        # The last row, which index -1 picks, stands for slots without a place.
        table = torch.cat([table, torch.zeros_like(table[:1])])
        self.register_buffer("turn", table, persistent=False)

    def forward(self, position_BS: Tensor) -> Tensor:
        """(B, 1, S, E/2, 2) cosines and sines at these places (-1: none)."""
        return self.turn[position_BS].unsqueeze(1)


def rotate(x_BHSE: Tensor, turn_B1SE2: Tensor) -> Tensor:
    """Turn the interleaved pairs of x by the angles of its slots, in float32."""
    pair = x_BHSE.float().unflatten(-1, (-1, 2))
    cos, sin = turn_B1SE2.unbind(-1)
    a, b = pair.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x_BHSE.dtype)

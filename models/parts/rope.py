"""Rotary positions on named axes.

Shapes: P positions (L of them plus none for prefixes), S slots, A axes, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.layout import AxisName, TokenLayout


class Rope(nn.Module):
    """Rotary embedding (arXiv:2104.09864) over any axes of a layout: each axis rotates an equal part of the pairs of channels.

    Pairs are interleaved (E/2 pairs of neighbours), those of the first axis first; pair i of an axis that has n channels rotates by
    ``coordinate * base^(-2i / n)``.  Slots without a position (conditions) get cosine and sine of zero, which zeroes their query
    and key: LlamaGen trains so, and its weights need it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="rope.grid"):
        """``base`` of the geometric frequencies; with a ``reach`` every grid is spread, in whole steps, over one whose longer side has
        that many positions (Infinity).  ``axes`` by name: of images, or e.g. ("time",) of a series, ("time", "row", "column") of video."""

        base: float = 10000.0
        reach: int = 0
        axes: Added[tuple[AxisName, ...]] = ("row", "column")

        def __post_init__(self) -> None:
            if not self.axes or len(set(self.axes)) != len(self.axes):
                raise ConfigError(f"rope.axes={list(self.axes)}: give at least one axis, each once")

    rotations: Tensor

    def __init__(self, config: Config, layout: TokenLayout, head_width: int) -> None:
        super().__init__()
        count = len(config.axes)
        if head_width % (2 * count):
            raise ConfigError(f"head width {head_width} is not divisible by {2 * count}, which rotary positions on {count} axes need")
        self.head_width, self.config = head_width, config
        channels = head_width // count
        if any(layout.coordinates(axis).is_meta for axis in config.axes):  # a model without memory: shapes are all that there is
            table = torch.empty(layout.length + 1, head_width // 2, 2, device="meta")
        else:
            table = self._table(layout, channels)
        self.register_buffer("rotations", table, persistent=False)

    def _table(self, layout: TokenLayout, channels: int) -> Tensor:
        """(L + 1, E/2, 2) cosines and sines, of ``channels`` an axis."""
        frequency = 1.0 / self.config.base ** (torch.arange(0, channels, 2).float() / channels)
        coordinates = [_spread(layout, axis, self.config.reach) for axis in self.config.axes]
        angle = torch.cat([x[:, None] * frequency for x in coordinates], dim=1)  # (L, E/2)
        table = torch.stack([angle.cos(), angle.sin()], dim=-1)
        # The last row, which index -1 picks, stands for slots without a position.
        return torch.cat([table, torch.zeros_like(table[:1])])

    def forward(self, position_BS: Tensor) -> Tensor:
        """(B, 1, S, E/2, 2) cosines and sines at these layout positions (-1: none)."""
        return self.rotations[position_BS].unsqueeze(1)


def _spread(layout: TokenLayout, axis: AxisName, reach: int) -> Tensor:
    """(L,) coordinates on an axis, rows and columns spread over a grid whose longer side has ``reach`` positions (0: as they are)."""
    x = layout.coordinates(axis).float()
    if not reach or axis not in ("row", "column"):
        return x
    size = torch.tensor(layout.grids, dtype=torch.float32)  # (scales, 2)
    step = size[-1] * (reach / size[-1].max()) / size
    return torch.round(x * step[layout.coordinates("scale"), ("row", "column").index(axis)])


def rotate(x_BHSE: Tensor, rotations_B1SE2: Tensor) -> Tensor:
    """The interleaved pairs of x rotated by the angles of its slots, in at least float32.

    With four numbers a pair instead of two, each half of it has a cosine and a sine of its own: ``(a c - b s, b c' + a s')``.
    """
    pair = x_BHSE.to(torch.promote_types(x_BHSE.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if rotations_B1SE2.shape[-1] == 4:
        (a, b), (cos, sin, other_cos, other_sin) = pair.unbind(-1), rotations_B1SE2.unbind(-1)
        return torch.stack([a * cos - b * sin, b * other_cos + a * other_sin], dim=-1).flatten(-2).to(x_BHSE.dtype)
    if not torch.compiler.is_compiling():  # one kernel; the compiler makes one of the lines below, and knows no complex numbers
        turned = torch.view_as_complex(pair) * torch.view_as_complex(rotations_B1SE2)
        return torch.view_as_real(turned).flatten(-2).to(x_BHSE.dtype)
    cos, sin = rotations_B1SE2.unbind(-1)
    a, b = pair.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x_BHSE.dtype)

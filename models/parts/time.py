"""Times as vectors.  Shapes: B rows, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def frequencies(count: int, device: torch.device) -> Tensor:
    """(count,) float32 from 1 down to almost 1 / 10,000, as released models compute them.

    A last bit is that of the kernel of ``exp``: times of the order of 1000 turn it into 5e-5 of an angle.
    """
    return torch.exp(-math.log(10_000) * torch.arange(count, device=device) / count)


def sinusoidal_embedding(time_B: Tensor, width: int, unit: float = 1000.0) -> Tensor:
    """(…, D) cosines and sines of ``unit`` times a time (…): wavelengths are from 2 pi to 60,000
    (arXiv:1706.03762); times in [0, 1] have the unit 1000."""
    angle = (unit * time_B[..., None]).float() * frequencies(width // 2, time_B.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def sinusoidal_grid(grid: tuple[int, int], width: int) -> Tensor:
    """(N, D) of the positions of a grid, row-major: sines and cosines of the column in the first half of the channels, of the row in the
    second (arXiv:2111.06377, released code)."""
    rows, columns = grid
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    column, row = torch.arange(columns).repeat(rows), torch.arange(rows).repeat_interleave(columns)
    angles = [place[:, None] * rate for place in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()


class TimeEmbedding(nn.Module):
    """Cosines and sines of a time, then two linear maps: (…) to (…, D).  ``unit``: see ``sinusoidal_embedding``."""

    def __init__(self, width: int, frequencies: int = 64, unit: float = 1000.0) -> None:
        super().__init__()
        self.frequencies, self.unit = frequencies, unit
        self.net = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.net(sinusoidal_embedding(t, 2 * self.frequencies, self.unit).to(next(self.net.parameters()).dtype))

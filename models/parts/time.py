"""Times as vectors.  Shapes: B rows, D width."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_embedding(time_B: Tensor, width: int) -> Tensor:
    """(B, D) sines and cosines of a time in [0, 1], of wavelengths from 1/160 to 60 times it (arXiv:1706.03762)."""
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=time_B.device) / half)
    angle = (1000 * time_B[:, None]).float() * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)

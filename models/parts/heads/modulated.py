"""The residual MLP of heads that draw a token from its hidden state (MAR, arXiv:2406.11838, section 3.3).

Shapes: … any leading axes, C channels taken and O given, E width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class ModulatedMLP(nn.Module):
    """Blocks ``x + gate mlp(norm(x) (1 + scale) + shift)``, modulated by one vector; they start as identities, the output as zero."""

    def __init__(self, taken: int, given: int, width: int, depth: int, norm: Literal["plain", "affine"] = "affine") -> None:
        """``norm`` of a block has weights of its own or not."""
        super().__init__()
        self.enter = nn.Linear(taken, width)
        self.modulation = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(depth)])
        self.norm = nn.ModuleList([nn.LayerNorm(width, eps=EPS, elementwise_affine=norm == "affine") for _ in range(depth)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)])
        self.last, self.out = nn.Linear(width, 2 * width), nn.Linear(width, given)
        for layer in (*self.modulation, self.last, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulated(self, x: Tensor, vector: Tensor, temperature: float = 1.0) -> Tensor:
        """(…, C) and (…, E) to (…, O); ``temperature`` scales the blocks' shifts (EAR, arXiv:2505.07812)."""
        y, c = self.enter(x), F.silu(vector)
        for modulation, norm, mlp in zip(self.modulation, self.norm, self.mlp):
            shift, scale, gate = modulation(c).chunk(3, -1)
            y = y + gate * mlp(norm(y) * (1 + scale) + temperature * shift)
        shift, scale = self.last(c).chunk(2, -1)
        return self.out(F.layer_norm(y, y.shape[-1:], eps=EPS) * (1 + scale) + shift)

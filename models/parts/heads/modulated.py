"""The residual MLP of heads that draw a token from its hidden state (MAR, arXiv:2406.11838, section 4.2 and appendix).

Shapes: … any leading axes, C channels taken and O given, E width.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class ModulatedMLP(nn.Module):
    """Blocks ``x + gate mlp(norm(x) (1 + scale) + shift)``, modulated by one vector; they start as identities, the output as zero."""

    def __init__(self, taken: int, given: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(taken, width)
        self.norm = nn.ModuleList([nn.LayerNorm(width, eps=EPS) for _ in range(depth)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)])
        self.modulation = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(depth)])
        self.last, self.out = nn.Linear(width, 2 * width), nn.Linear(width, given)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (*self.modulation, self.last, self.out):
            nn.init.zeros_(cast(nn.Linear, layer).weight)

    def forward(self, x: Tensor, modulation: Tensor, temperature: float = 1.0) -> Tensor:
        """(…, C) and (…, E) to (…, O); ``temperature`` scales the blocks' shifts (EAR, arXiv:2505.07812)."""
        x, c = self.enter(x), F.silu(modulation)
        for norm, mlp, layer in zip(self.norm, self.mlp, self.modulation):
            shift, scale, gate = layer(c).chunk(3, -1)
            x = x + gate * mlp(norm(x) * (1 + scale) + temperature * shift)
        shift, scale = self.last(c).chunk(2, -1)
        return self.out(F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)

"""The small net of heads that denoise: residual MLP blocks modulated by time and hidden state (MAR, arXiv:2406.11838, section 3.3).

Shapes: … rows and positions, C channels, O outputs, D width of the condition, E of the net.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.parts.time import sinusoidal_embedding


class DenoisingMLP(nn.Module):
    """(noisy tokens, time, condition) to outputs; blocks start as identities and the outputs as zero."""

    def __init__(
        self, channels: int, outputs: int, condition: int, width: int, depth: int, *, frequencies: int, norm: Literal["plain", "affine"]
    ) -> None:
        """``frequencies`` are the sines and cosines of a time; ``norm`` of a block has weights of its own or not."""
        super().__init__()
        self.frequencies = frequencies
        self.enter, self.condition = nn.Linear(channels, width), nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(depth)])
        self.norm = nn.ModuleList([nn.LayerNorm(width, eps=1e-6, elementwise_affine=norm == "affine") for _ in range(depth)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)])
        self.last, self.out = nn.Linear(width, 2 * width), nn.Linear(width, outputs)
        for layer in (*self.modulation, self.last, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, h: Tensor) -> Tensor:
        """Outputs (…, O), float32, of noisy tokens (…, C) at times (…) in [0, 1] and conditions (…, D)."""
        embedded = sinusoidal_embedding(time.flatten(), self.frequencies).unflatten(0, time.shape).to(h)
        y, c = self.enter(x.to(h)), F.silu(self.time(embedded) + self.condition(h))
        for modulation, norm, mlp in zip(self.modulation, self.norm, self.mlp):
            shift, scale, gate = modulation(c).chunk(3, -1)
            y = y + gate * mlp(norm(y) * (1 + scale) + shift)
        shift, scale = self.last(c).chunk(2, -1)
        return self.out(F.layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale) + shift).float()

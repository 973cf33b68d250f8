"""The small net of heads that denoise: residual MLP blocks modulated by time and hidden state (MAR, arXiv:2406.11838, section 3.3).

Shapes: … rows and positions, C channels, O outputs, D width of the condition, E of the net.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tokenloom.models.parts.heads.modulated import ModulatedMLP
from tokenloom.models.parts.time import sinusoidal_embedding


class DenoisingMLP(ModulatedMLP):
    """(noisy tokens, time, condition) to outputs; blocks start as identities and the outputs as zero."""

    def __init__(
        self, channels: int, outputs: int, condition: int, width: int, depth: int, *, frequencies: int, norm: Literal["plain", "affine"]
    ) -> None:
        """``frequencies`` are the sines and cosines of a time; ``norm`` of a block has weights of its own or not."""
        super().__init__(channels, outputs, width, depth, norm)
        self.frequencies, self.condition = frequencies, nn.Linear(condition, width)
        self.time = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, time: Tensor, h: Tensor) -> Tensor:
        """Outputs (…, O), float32, of noisy tokens (…, C) at times (…) in [0, 1] and conditions (…, D)."""
        return self.modulated(x.to(h), self.time(sinusoidal_embedding(time, self.frequencies).to(h)) + self.condition(h)).float()

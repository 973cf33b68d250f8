"""Bitwise self-correction (Infinity, arXiv:2412.04431, section 3.4): a generator learns to mend its own mistakes.

Some bits of each scale are flipped, and what later scales have to code is computed anew from the flipped sum.  The generator is given
the flipped sums, its targets are the bits that would be right there.  Shapes: B rows, D bits, H W the last grid, P positions of a
scale, L tokens of all scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models import config as configs
from models.config import ConfigError
from models.draws import Draws
from models.parts.quantizers.multiscale_bsq import MultiScaleBSQ


@dataclass(frozen=True, kw_only=True)
class SelfCorrection(configs.Config):
    """The first ``scales`` scales are flipped, each with a probability drawn from 0, 0.01, … ``strength``, one a batch."""

    strength: float = 0.3
    scales: int = 13

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or self.scales < 0:
            raise ConfigError(f"correction.strength={self.strength}, scales={self.scales}: strength in [0, 1], scales not negative")

    def draw(self, quantizer: MultiScaleBSQ, draws: Draws) -> list[Tensor]:
        """Flips (B, P, D) bool of each scale that is flipped, from the step's draws."""
        flips = []
        for s in quantizer.scales[: self.scales]:
            percent = (draws.shared_uniform() * (round(100 * self.strength) + 1)).floor()
            flips.append(flipped(draws.uniform(s * s, quantizer.config.bits), percent))
        return flips


def flipped(u_BPD: Tensor, percent: Tensor) -> Tensor:
    """Which bits are flipped, (B, P, D) bool: those whose uniform draw is below the probability."""
    return u_BPD < 0.01 * percent


@torch.no_grad()
def corrected(quantizer: MultiScaleBSQ, z_BDHW: Tensor, flips: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What a generator is given and what it must say.

    Args:
        z_BDHW: latents of the encoder.
        flips: (B, P, D) bool of the first scales; the others are left as they are.

    Returns:
        Inputs (B, L - first scale, D) of all scales but the first, and target bits (B, L, D) int64.
    """
    f_hat, inputs, bits = quantizer.start(len(z_BDHW)).to(z_BDHW), [], []
    for scale in range(len(quantizer.scales)):
        bit_BPD = quantizer.direction(z_BDHW - f_hat, scale) > 0
        bits.append(bit_BPD.long())
        if scale < len(flips):
            bit_BPD = bit_BPD ^ flips[scale]
        f_hat, following_BPD = quantizer.accumulate(f_hat, scale, bit_BPD)
        inputs.append(following_BPD)
    return torch.cat([f_hat.new_zeros(len(f_hat), 0, f_hat.shape[1]), *inputs[:-1]], 1), torch.cat(bits, 1)

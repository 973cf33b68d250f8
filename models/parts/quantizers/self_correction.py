"""Bitwise self-correction (Infinity, arXiv:2412.04431, section 3.4): a generator learns to mend its own mistakes.

Some bits of each scale are flipped, and what later scales have to code is computed anew from the flipped sum.  The generator is given
the flipped sums, its targets are the bits that would be right there.  Shapes: B rows, D bits, H W the last grid, P positions of a
scale, L tokens of all scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ


@dataclass(frozen=True, kw_only=True)
class SelfCorrection(configs.Config, tag="self_correction"):
    """The first ``scales`` scales are flipped, each with a probability drawn from 0, 0.01, … ``strength``, one a batch."""

    strength: float = 0.3
    scales: int = 13

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or self.scales < 0:
            raise ConfigError(f"correction.strength={self.strength}, scales={self.scales}: strength in [0, 1], scales not negative")

    def draw(self, quantizer: MultiScaleBSQ, draws: Draws) -> list[Tensor]:
        """Flips (B, P, D) bool of each scale that is flipped, from the step's draws."""
        flips = []
        for h, w in quantizer.scales[: self.scales]:
            percent = (draws.shared_uniform() * (round(100 * self.strength) + 1)).floor()
            flips.append(flipped(draws.uniform(h * w, quantizer.config.bits), percent))
        return flips


def flipped(u_BPD: Tensor, percent: Tensor) -> Tensor:
    """Which bits are flipped, (B, P, D) bool: those whose uniform draw is below the probability."""
    return u_BPD < 0.01 * percent


@torch.no_grad()
def corrected(quantizer: MultiScaleBSQ, z_BDHW: Tensor, flips: list[Tensor], stored_BLD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a generator is given and what it must say.

    Args:
        z_BDHW: latents of the image.
        flips: (B, P, D) bool of the first scales; the others are left as they are.
        stored_BLD: bits that a row keeps in its scales up to the first that is flipped; else these are coded anew too.

    Returns:
        Bits with flips, of which the inputs are made, and target bits, both (B, L, D) int64.
    """
    f_hat, given, target = quantizer.start(len(z_BDHW)).to(z_BDHW), [], []
    kept_B11 = torch.full((len(z_BDHW), 1, 1), stored_BLD is not None, device=z_BDHW.device)
    for scale in range(len(quantizer.scales)):
        bit_BPD = (quantizer.direction(z_BDHW - f_hat, scale) > 0).long()
        if stored_BLD is not None:
            bit_BPD = torch.where(kept_B11, quantizer.split(stored_BLD)[scale], bit_BPD)
        target.append(bit_BPD)
        if scale < len(flips):
            bit_BPD = bit_BPD ^ flips[scale]
            kept_B11 = kept_B11 & ~flips[scale].any((1, 2), keepdim=True)
        given.append(bit_BPD)
        f_hat, _ = quantizer.accumulate(f_hat, scale, bit_BPD)
    return torch.cat(given, 1), torch.cat(target, 1)

"""Standardisation by moving averages over the global batch, for latents that are about to be rounded.

Shapes: B rows, C channels, h w latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.collectives import all_reduce_sum


class MovingNorm(nn.Module):
    """Each channel of each position less its moving mean, over its moving standard deviation.

    Queries say almost the same of every image at first; what they share would drift to where rounding has no gradient, long before
    what differs is worth a code.  Unlike batch normalisation a row's result does not depend on its batch, nor training on the workers.
    """

    mean: Tensor
    variance: Tensor
    fresh: Tensor
    _sums: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="norm.moving"):
        """``decay`` of the variances and, shorter so that it keeps up with a drift, ``decay_mean`` of the means, per optimizer step;
        standard deviations count as at least ``floor``."""

        decay: float = 0.95
        decay_mean: float = 0.7
        floor: float = 1e-3

        def __post_init__(self) -> None:
            if not (0 <= self.decay < 1 and 0 <= self.decay_mean < 1) or self.floor <= 0:
                raise ConfigError(
                    f"norm.decay={self.decay}, decay_mean={self.decay_mean}, floor={self.floor}: decays in [0, 1), floor positive"
                )

    def __init__(self, config: Config, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        shape = (channels, *grid)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("fresh", torch.ones(()))  # 0 from the first step on
        self.register_buffer("_sums", torch.zeros(2 * channels * grid[0] * grid[1] + 1), persistent=False)

    def forward(self, z_BChw: Tensor, draws: Draws | None = None) -> Tensor:
        """Standardised latents; in training with ``draws`` the statistics take the batch in, for the next step."""
        z_BChw = z_BChw.to(self.mean.dtype)
        if self.training and draws is not None:
            with torch.no_grad():
                first, second = z_BChw.sum(0), z_BChw.square().sum(0)
                self._sums += torch.cat([first.flatten(), second.flatten(), first.new_tensor([float(len(z_BChw))])])
        return (z_BChw - self.mean) / self.variance.clamp_min(self.config.floor**2).sqrt()

    @torch.no_grad()
    def after_step(self) -> None:
        """Take in what the step observed on all ranks: the first step's values at once, then averages."""
        sums = all_reduce_sum(self._sums)
        first, second = sums[:-1].view(2, *self.mean.shape) / sums[-1].clamp_min(1)
        for average, value, decay in (
            (self.mean, first, self.config.decay_mean),
            (self.variance, second - first.square(), self.config.decay),  # within the step, so that a drift of the mean is no variance
        ):
            average.copy_(torch.where(self.fresh > 0, value, average.lerp(value, 1 - decay)))
        self.fresh.zero_()
        self._sums.zero_()

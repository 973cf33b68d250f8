"""Post-training quantization of a VAE's latents, every channel on its own (TokenBridge, arXiv:2503.16430, section 3.2).

Training is that of a VAE.  Then each channel is cut into bins of equal probability under a normal distribution; a token is one bin a
channel.  Shapes: B rows, C channels, H W grid, L = H W, V levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.quantizers.gaussian import Gaussian


def normal_levels(levels: int, clip: float) -> Tensor:
    """Reconstruction values (V,) of a standard normal cut at ``clip`` standard deviations, float64, growing.

    The bins' edges are the quantiles at equal steps, the outer ones moved to the clip; a bin's value is the mean of the normal in it.
    """
    edges = torch.special.ndtri(torch.linspace(0, 1, levels + 1, dtype=torch.float64)).clamp(-clip, clip)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(edges).diff()
    return -density.diff() / mass


class Dimensionwise(Gaussian):
    """A Gaussian posterior whose mean becomes C ids of V levels; ``mean`` and ``std`` of each channel are set after training."""

    mean: Tensor
    std: Tensor
    levels: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Gaussian.Config, tag="quantizer.dimensionwise", label="levels of each channel"):
        """``levels`` bins a channel, of a normal cut at ``clip`` standard deviations."""

        levels: int = 16
        clip: float = 3.0
        scale: float | None = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            # an outer bin must keep some of the normal after the cut
            if self.levels < 2 or self.clip <= 0 or 0.5 * math.erfc(self.clip / math.sqrt(2)) >= 1 / self.levels:
                raise ConfigError(f"quantizer.levels={self.levels}, clip={self.clip}: at least 2 levels, clip beyond the last one's edge")

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), vocabulary=self.levels, codebooks=self.dim)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("std", torch.ones(config.dim))
        self.register_buffer("levels", normal_levels(config.levels, config.clip).float(), persistent=False)

    def quantise(self, latent_BLC: Tensor) -> Tensor:
        """Ids of the nearest levels, the lower one of two as near: (…, C) to (…, C) int64."""
        unit = (latent_BLC - self.mean) / self.std
        middle = (self.levels[1:] + self.levels[:-1]) / 2
        return torch.bucketize(unit.contiguous(), middle.to(unit))

    def dequantise(self, ids_BLC: Tensor) -> Tensor:
        """The values that ids stand for."""
        return self.levels[ids_BLC] * self.std + self.mean

    def tokens(self, latent_BCHW: Tensor) -> Tensor:
        ids_BLC = self.quantise(latent_BCHW.flatten(2).transpose(1, 2))
        return ids_BLC if self.config.dim > 1 else ids_BLC[..., 0]

    def lookup(self, data: Tensor) -> Tensor:
        """Latents (B, C, H, W) of ids (B, L, C), or (B, L) of a single channel."""
        ids_BLC = data if self.config.dim > 1 else data[..., None]
        return self.dequantise(ids_BLC).transpose(1, 2).unflatten(2, self.grid)

    @torch.no_grad()
    def finish(self, latents: Iterator[Tensor]) -> None:
        """Mean and standard deviation of each channel over these latents; unchanged if there are none."""
        count, total_C, square_C = 0, torch.zeros_like(self.mean, dtype=torch.float64), torch.zeros_like(self.mean, dtype=torch.float64)
        for moments_BCHW in latents:
            value = self.posterior(moments_BCHW)[0].double()
            count += value.numel() // value.shape[1]
            total_C += value.sum((0, 2, 3))
            square_C += value.square().sum((0, 2, 3))
        if count > 1:
            mean_C = total_C / count
            self.mean.copy_(mean_C)
            self.std.copy_((square_C / count - mean_C.square()).clamp_min(1e-12).sqrt())

"""Finite scalar quantization: each channel rounded to a few levels, no codebook (FSQ, arXiv:2309.15505).

Shapes: B rows, C channels (one a level), H W grid, L = H W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.gradients import Straight
from tokenloom.models.parts.quantizers.usage import Usage

_EDGE = 1e-3  # the outermost levels are reached before tanh saturates

_straight = Straight()


@dataclass(frozen=True, kw_only=True)
class Tanh(configs.Config, tag="bound.tanh"):
    """The paper's bound: tanh, shifted for even numbers of levels so that 0 is one of them.

    With an even number the levels are -1 … 1 - 2 / L, with an odd one -1 … 1.
    """

    def digits(self, z: Tensor, levels_C: Tensor) -> Tensor:
        """Latents (..., C) to digits 0 … L - 1, not yet rounded."""
        half = (levels_C - 1) * (1 + _EDGE) / 2
        offset = 0.5 * (levels_C % 2 == 0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset + levels_C // 2

    def codes(self, digits: Tensor, levels_C: Tensor) -> Tensor:
        """Digits (..., C) to code values in [-1, 1]."""
        half = levels_C // 2
        return (digits - half) / half


@dataclass(frozen=True, kw_only=True)
class Clamp(configs.Config, tag="bound.clamp"):
    """Levels spread evenly over [-1, 1], ends included, and symmetric; latents beyond are clamped (arXiv:2411.19842, section 3.2)."""

    def digits(self, z: Tensor, levels_C: Tensor) -> Tensor:
        """Latents (..., C) to digits 0 … L - 1, not yet rounded."""
        return (levels_C - 1) * (z.clamp(-1, 1) + 1) / 2

    def codes(self, digits: Tensor, levels_C: Tensor) -> Tensor:
        """Digits (..., C) to code values in [-1, 1]."""
        return digits * 2 / (levels_C - 1) - 1


@dataclass(frozen=True, kw_only=True)
class Symmetric(Clamp, tag="bound.symmetric"):
    """The same levels after a tanh (arXiv:2411.19842, section 3.2)."""

    def digits(self, z: Tensor, levels_C: Tensor) -> Tensor:
        return super().digits(torch.tanh(z), levels_C)


class FSQ(Quantizer):
    """The id counts the first channel as its lowest digit."""

    levels: Tensor
    basis: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.fsq", label="scalar levels"):
        """``levels`` of each channel; the vocabulary is their product."""

        levels: tuple[int, ...] = (8, 5, 5, 5)
        bound: Tanh | Clamp | Symmetric = Tanh()

        def __post_init__(self) -> None:
            if not self.levels or min(self.levels) < 2:
                raise ConfigError(f"quantizer.levels={list(self.levels)}: give at least 2 levels a channel, e.g. [8, 5, 5, 5]")
            if math.prod(self.levels) > 1 << 24:
                raise ConfigError(f"quantizer.levels={list(self.levels)}: more than 2^24 codes")

        def channels(self) -> tuple[int, int]:
            return len(self.levels), len(self.levels)

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), vocabulary=math.prod(self.levels))

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", torch.cat([levels.new_ones(1), levels[:-1].cumprod(0)]), persistent=False)
        self.usage = Usage(math.prod(config.levels))

    def _digits(self, z_BCHW: Tensor) -> Tensor:
        """(B, H, W, C), not yet rounded."""
        return self.config.bound.digits(exact(z_BCHW).permute(0, 2, 3, 1), self.levels)

    def _ids(self, digits_BHWC: Tensor) -> Tensor:
        return (digits_BHWC.long() * self.basis).sum(-1).flatten(1)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; there is no loss: rounding is straight through, the bound is not."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            digits = self._digits(z_BCHW)
            rounded = digits.detach().round()
            z_BHWC = self.config.bound.codes(_straight(digits, rounded), self.levels)
            ids_BL = self._ids(rounded)
        usage = self.usage.count([ids_BL])
        if self.training and draws is not None:
            self.usage.observe(usage)
        return Quantized(z_BHWC.permute(0, 3, 1, 2), ids_BL, {}, {"usage": usage})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L), row-major."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return self._ids(self._digits(z_BCHW).round())

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """Code values (B, C, H, W) of ids."""
        digits_BLC = ids_BL[..., None] // self.basis % self.levels
        return self.config.bound.codes(digits_BLC.to(torch.get_default_dtype()), self.levels).transpose(1, 2).unflatten(2, self.grid)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Use and perplexity."""
        return self.usage.after_step()

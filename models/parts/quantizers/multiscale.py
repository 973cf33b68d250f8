"""Multi-scale residual vector quantization (VAR, arXiv:2404.02905, algorithms 1 and 2).

Each scale codes what the smaller ones left over.  Shapes: B rows, C channels, H W the last grid, S scales, L tokens of all
scales, small to large and row-major inside a scale.  ``f_hat`` is the sum of the scales so far at the size of the last grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned, counts, exact
from tokenloom.models.parts.quantizers.grids import Grid, growing, last, pair, resized


def phi_of_scale(scale: int, scales: int, phis: int) -> int:
    """Which of ``phis`` convolutions serves a scale: the nearest of evenly spread ticks.

    Ticks and the rounding of ties are those of the released VAR models, whose spread for four convolutions is 1/12 … 11/12.
    """
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    return int(np.argmin(np.abs(ticks - scale / max(1, scales - 1))))


class Phi(nn.Conv2d):
    """The 3x3 convolution after upsampling, blended with its input: (1 - ratio) h + ratio conv(h)."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__(dim, dim, 3, padding=1)
        self.ratio = ratio

    def forward(self, h_BCHW: Tensor) -> Tensor:
        return h_BCHW * (1 - self.ratio) + super().forward(h_BCHW) * self.ratio


class MultiScale(Quantizer):
    """Residual quantization over scales with one shared codebook; ``scales[-1]`` is the latent grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.multi_scale", label="multi-scale residual"):
        """``phis`` convolutions are shared by the scales; ``ratio`` blends them in (0: none).

        With the cosine metric only the search is normalised.
        """

        codebook: Codebook.Config
        scales: tuple[Grid, ...]
        beta: float = 0.25
        phis: int = 4
        ratio: float = 0.5

        def __post_init__(self) -> None:
            growing(self.scales)
            if self.beta < 0 or not 0 <= self.ratio <= 1:
                raise ConfigError(f"quantizer.beta={self.beta}, ratio={self.ratio}: beta must not be negative, ratio in [0, 1]")
            if self.phis < 1:
                raise ConfigError(f"quantizer.phis={self.phis}: must be at least 1")

        @property
        def dim(self) -> int:
            """Channels of the latents."""
            return self.codebook.dim

        @property
        def codes(self) -> int:
            """Size of the vocabulary."""
            return self.codebook.codes

        def channels(self) -> tuple[int, int]:
            return self.dim, self.dim

        def at(self, grid: tuple[int, int]) -> MultiScale.Config:
            return replace(self, scales=resized(self.scales, grid))

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=last(self.scales, grid), vocabulary=self.codes)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.scales = tuple(pair(s) for s in config.scales)
        # A vector of a small scale covers many positions of the last grid, and counts as many times: averages of codes then minimise
        # the error of f_hat, and the few vectors of the smallest scales shape the codebook as much as the many of the largest.
        area = tuple(math.prod(self.size) / (h * w) for h, w in self.scales)
        self.codebook = config.codebook.build(tuple(f"{h}x{w}" for h, w in self.scales), area)
        self.phi = nn.ModuleList(Phi(config.dim, config.ratio) for _ in range(config.phis if config.ratio > 0 else 0))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the last grid."""
        return self.scales[-1]

    def _up(self, scale: int, z_BChw: Tensor) -> Tensor:
        """A scale's code vectors at the size of the last grid, after Phi."""
        if scale < len(self.scales) - 1:
            z_BChw = F.interpolate(z_BChw, size=self.size, mode="bicubic")
        if not self.phi:
            return z_BChw
        return self.phi[phi_of_scale(scale, len(self.scales), len(self.phi))](z_BChw)

    def _down(self, f_BCHW: Tensor, scale: int) -> Tensor:
        """A full-size map at a scale's size; the last scale is not interpolated."""
        if scale == len(self.scales) - 1:
            return f_BCHW
        return F.interpolate(f_BCHW, size=self.scales[scale], mode="area")

    def _target(self, z_BCHW: Tensor, scale: int) -> Tensor:
        """What the sum of the scales up to this one should be."""
        return z_BCHW

    def _vectors(self, ids_BP: Tensor, scale: int, weight: Tensor | None = None) -> Tensor:
        z_BPC = F.embedding(ids_BP, self.codebook.weight if weight is None else weight)
        return z_BPC.transpose(1, 2).unflatten(2, self.scales[scale])

    def split(self, ids_BL: Tensor) -> tuple[Tensor, ...]:
        """The ids of each scale, (B, s*s)."""
        return ids_BL.split([h * w for h, w in self.scales], dim=1)

    def _residual(self, f_BCHW: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Per scale (vectors (B, P, C), ids (B, P)), and f_hat after each scale (algorithm 1)."""
        rest = f_BCHW.detach()
        f_hat = torch.zeros_like(rest)
        weight = self.codebook.weight.to(rest.dtype)
        groups, f_hats = [], []
        for scale in range(len(self.scales)):
            z_BPC = self._down(rest, scale).flatten(2).transpose(1, 2)
            ids_BP = self.codebook.nearest(z_BPC.flatten(0, 1)).view(z_BPC.shape[:2])
            h_BCHW = self._up(scale, self._vectors(ids_BP, scale, weight))
            f_hat = f_hat + h_BCHW
            rest = rest - h_BCHW.detach()
            groups.append((z_BPC, ids_BP))
            f_hats.append(f_hat)
        return groups, f_hats

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; the losses are means over the scales of the error of the sum so far, as VAR has them.

        In training with ``draws`` the codebook's statistics take the batch in.
        """
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BCHW = exact(z_BCHW)
            groups, f_hats = self._residual(z_BCHW)
            targets = [self._target(z_BCHW, scale) for scale in range(len(f_hats))]
            commitment = torch.stack([F.mse_loss(t, f.detach()) for t, f in zip(targets, f_hats)]).mean()
            codebook = torch.stack([F.mse_loss(f, t.detach()) for t, f in zip(targets, f_hats)]).mean()
            update = self.config.codebook.update
            # with a codebook that follows averages this term still trains Phi
            weight = update.weight if isinstance(update, Learned) else 1.0
            losses = {"commitment": self.config.beta * commitment}
            if isinstance(update, Learned) or self.phi:
                losses["codebook"] = weight * codebook
            if self.training and draws is not None:
                self.codebook.observe(groups, draws)
            straight = z_BCHW + (f_hats[-1] - z_BCHW).detach()
        usage = counts([ids for _, ids in groups], self.config.codes)
        error = torch.stack([F.mse_loss(f.detach(), z_BCHW.detach()) for f in f_hats])
        return Quantized(straight, torch.cat([ids for _, ids in groups], 1), losses, {"usage": usage, "residual": error})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L) of all scales."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return torch.cat([ids for _, ids in self._residual(exact(z_BCHW))[0]], 1)

    def partial(self, ids_BL: Tensor) -> list[Tensor]:
        """f_hat (B, C, H, W) after each scale (algorithm 2)."""
        f_hats: list[Tensor] = []
        for scale, ids_BP in enumerate(self.split(ids_BL)):
            h_BCHW = self._up(scale, self._vectors(ids_BP, scale))
            f_hats.append(h_BCHW if scale == 0 else f_hats[-1] + h_BCHW)
        return f_hats

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """The latents (B, C, H, W) that the ids stand for: f_hat after the last scale."""
        return self.partial(ids_BL)[-1]

    def next_inputs(self, ids_BL: Tensor) -> Tensor:
        """Teacher forcing: what each scale but the first is given, (B, L - first scale, C).

        The input of a scale is the sum of all smaller ones, area-downsampled to its size.
        """
        f_hats = self.partial(ids_BL)[:-1]
        inputs = [self._down(f, scale).flatten(2).transpose(1, 2) for scale, f in enumerate(f_hats, start=1)]
        return torch.cat(inputs, 1) if inputs else self.codebook.weight.new_zeros(len(ids_BL), 0, self.config.dim)

    def start(self, rows: int) -> Tensor:
        """f_hat before the first scale: zeros (B, C, H, W)."""
        return self.codebook.weight.new_zeros(rows, self.config.dim, *self.size)

    def accumulate(self, f_hat_BCHW: Tensor, scale: int, ids_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Decoding one scale at a time: the new f_hat, and the next scale's input (B, P', C).

        After the last scale the second is f_hat itself as (B, H W, C).
        """
        f_hat_BCHW = self.added(f_hat_BCHW, scale, ids_BP)
        return f_hat_BCHW, self.shown(f_hat_BCHW, min(scale + 1, len(self.scales) - 1))

    def added(self, f_hat_BCHW: Tensor, scale: int, ids_BP: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """f_hat with the codes of a scale in it; where ``kept_BP`` is false there are zeros in their place."""
        z_BChw = self._vectors(ids_BP, scale)
        if kept_BP is not None:
            z_BChw = z_BChw * kept_BP.view(len(kept_BP), 1, *self.scales[scale]).to(z_BChw)
        return f_hat_BCHW + self._up(scale, z_BChw)

    def shown(self, f_hat_BCHW: Tensor, scale: int) -> Tensor:
        """f_hat as a scale is given it, (B, P, C)."""
        return self._down(f_hat_BCHW, scale).flatten(2).transpose(1, 2)

    def of_some(self, ids_BL: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The latents that ids of these scales alone stand for: the others add nothing.

        Raises:
            LayoutError: a grid that is none of the scales, or out of their order.
        """
        left = iter(enumerate(self.scales))
        chosen = [scale for grid in grids for scale in [next((i for i, own in left if own == pair(grid)), -1)] if scale >= 0]
        if not grids or len(chosen) < len(grids):
            raise LayoutError(f"tokens of the grids {list(grids)}: not some of the scales {list(self.scales)} in their order")
        f_hat = self.start(len(ids_BL))
        for scale, ids_BP in zip(chosen, ids_BL.split([math.prod(pair(grid)) for grid in grids], dim=1)):
            f_hat = self.added(f_hat, scale, ids_BP)
        return f_hat

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Codebook update once an optimizer step; use and perplexity per scale."""
        return self.codebook.after_step(draws)

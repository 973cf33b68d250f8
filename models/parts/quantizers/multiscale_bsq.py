"""Multi-scale binary spherical quantization (Infinity, arXiv:2412.04431, section 3.2).

Each scale codes the direction of what the smaller ones left over, a bit a channel.  Shapes: B rows, D bits (= channels), H W the last
grid, h w a scale's grid, P = h w, S scales, L tokens of all scales, small to large and row-major inside a scale.  ``f_hat`` is the sum
of the scales so far at the size of the last grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.gradients import Straight
from tokenloom.models.parts.quantizers.grids import Grid, at_aspect, growing, last, pair
from tokenloom.models.parts.quantizers.lfq import pack
from tokenloom.models.parts.quantizers.usage import Usage

_straight = Straight()

#: Use is counted over the values of the first bits, at most so many.
WATCHED = 12


class MultiScaleBSQ(Quantizer):
    """Residual quantization over scales without a codebook: tokens are D codebooks of two codes; ``scales[-1]`` is the latent grid."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.multi_scale_bsq", label="multi-scale signs"):
        """``beta`` weighs the commitment loss, the mean over the scales of the error of the sum so far."""

        bits: int = 10
        scales: tuple[Grid, ...] = (1, 2, 3, 4)
        beta: float = 0.25
        entropy: Entropy | None = Entropy(weight=0.02, temperature=0.1)

        def __post_init__(self) -> None:
            growing(self.scales)
            if self.bits < 2 or self.beta < 0:
                raise ConfigError(f"quantizer.bits={self.bits}, beta={self.beta}: at least 2 bits, beta not negative")

        def channels(self) -> tuple[int, int]:
            return self.bits, self.bits

        def at(self, grid: tuple[int, int]) -> MultiScaleBSQ.Config:
            return replace(self, scales=at_aspect(self.scales, grid))

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=last(self.scales, grid), vocabulary=2, codebooks=self.bits)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.scales = config, tuple(pair(s) for s in config.scales)
        self.scale = 1 / math.sqrt(config.bits)
        self.usage = Usage(2 ** min(config.bits, WATCHED), tuple(f"{h}x{w}" for h, w in self.scales))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the last grid."""
        return self.scales[-1]

    def direction(self, rest_BDHW: Tensor, scale: int) -> Tensor:
        """What a scale codes: the direction of the area-averaged rest, (B, P, D); its signs are the bits, 0 gives bit 0."""
        if scale < len(self.scales) - 1:
            rest_BDHW = F.interpolate(rest_BDHW, size=self.scales[scale], mode="area")
        return F.normalize(rest_BDHW.flatten(2).transpose(1, 2), dim=-1)

    def code(self, bit_BPD: Tensor, scale: int) -> Tensor:
        """A scale's codes at the size of the last grid, (B, D, H, W)."""
        z_BDhw = ((2 * bit_BPD.long() - 1) * self.scale).transpose(1, 2).unflatten(2, self.scales[scale])
        return z_BDhw if scale == len(self.scales) - 1 else F.interpolate(z_BDhw, size=self.size, mode="bilinear")

    def split(self, bit_BLD: Tensor) -> tuple[Tensor, ...]:
        """The bits of each scale, (B, P, D)."""
        return bit_BLD.split([h * w for h, w in self.scales], dim=1)

    def _residual(self, z_BDHW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Directions (B, P, D), with the gradient of z, and f_hat after each scale."""
        f_hat, directions, f_hats = torch.zeros_like(z_BDHW), [], []
        for scale in range(len(self.scales)):
            u_BPD = self.direction(z_BDHW - f_hat, scale)
            f_hat = f_hat + self.code(u_BPD > 0, scale).to(z_BDHW)
            directions.append(u_BPD)
            f_hats.append(f_hat)
        return directions, f_hats

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; bits are (B, L, D).  The entropy loss is the mean over the scales of that of their directions."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BCHW = exact(z_BCHW)
            directions, f_hats = self._residual(z_BCHW)
            losses = {"commitment": self.config.beta * torch.stack([F.mse_loss(z_BCHW, f) for f in f_hats]).mean()}
            if self.config.entropy is not None:
                pairs = [self.config.entropy.of_bits(u.flatten(0, 1), self.scale) for u in directions]
                losses["entropy"] = torch.stack([self.config.entropy(*pair) for pair in pairs]).mean()
            straight = _straight(z_BCHW, f_hats[-1])
        bits = [(u > 0).long() for u in directions]
        watched = min(self.config.bits, WATCHED)
        usage = self.usage.count([pack(b[..., :watched], (watched,)) for b in bits])
        if self.training and draws is not None:
            self.usage.observe(usage)
        error = torch.stack([F.mse_loss(f, z_BCHW.detach()) for f in f_hats])
        return Quantized(straight, torch.cat(bits, 1), losses, {"usage": usage, "residual": error})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Bits (B, L, D) int64 of all scales."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return torch.cat([(u > 0).long() for u in self._residual(exact(z_BCHW))[0]], 1)

    def partial(self, bit_BLD: Tensor) -> list[Tensor]:
        """f_hat (B, D, H, W) after each scale."""
        f_hats: list[Tensor] = []
        for scale, bit_BPD in enumerate(self.split(bit_BLD)):
            h_BDHW = self.code(bit_BPD, scale)
            f_hats.append(h_BDHW if scale == 0 else f_hats[-1] + h_BDHW)
        return f_hats

    def lookup(self, bit_BLD: Tensor) -> Tensor:
        """The latents (B, D, H, W) that the bits stand for: f_hat after the last scale."""
        return self.partial(bit_BLD)[-1]

    def start(self, rows: int) -> Tensor:
        """f_hat before the first scale: zeros (B, D, H, W)."""
        return self.usage.usage.new_zeros(rows, self.config.bits, *self.size)

    def following(self, f_hat_BDHW: Tensor, scale: int, mode: str = "bilinear") -> Tensor:
        """What the scale after ``scale`` is given, (B, P', D): f_hat at its size; after the last scale f_hat itself.

        The generators of Infinity take it bilinear; "area" is the average that the residual is coded from.
        """
        after = min(scale + 1, len(self.scales) - 1)
        if after < len(self.scales) - 1:
            f_hat_BDHW = F.interpolate(f_hat_BDHW, size=self.scales[after], mode=mode)
        return f_hat_BDHW.flatten(2).transpose(1, 2)

    def next_inputs(self, bit_BLD: Tensor, mode: str = "bilinear") -> Tensor:
        """Teacher forcing: what each scale but the first is given, (B, L - first scale, D)."""
        inputs = [self.following(f, scale, mode) for scale, f in enumerate(self.partial(bit_BLD)[:-1])]
        return torch.cat(inputs, 1) if inputs else self.start(len(bit_BLD)).flatten(2).transpose(1, 2)[:, :0]

    def accumulate(self, f_hat_BDHW: Tensor, scale: int, bit_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Decoding one scale at a time: the new f_hat, and the next scale's input (B, P', D)."""
        f_hat_BDHW = f_hat_BDHW + self.code(bit_BPD, scale)
        return f_hat_BDHW, self.following(f_hat_BDHW, scale)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Use and perplexity of the values of the first bits, per scale."""
        return self.usage.after_step()

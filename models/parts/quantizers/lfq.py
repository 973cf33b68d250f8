"""Binary quantization: a bit a channel, its sign (LFQ of MAGVIT-v2, arXiv:2310.05737; BSQ on the sphere, arXiv:2406.07548).

Shapes: B rows, D bits (= channels), H W grid, L = H W, Q codebooks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.gradients import Straight
from tokenloom.models.parts.quantizers.usage import Usage

_straight = Straight()


def pack(bit_D: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Bits (..., D) of any type to ids (..., Q) int64: each takes the next ``sizes[q]`` bits, the first one lowest."""
    parts = bit_D.long().split(list(sizes), -1)
    return torch.stack([(part << torch.arange(part.shape[-1], device=part.device)).sum(-1) for part in parts], -1)


def unpack(ids_Q: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Inverse of ``pack``: ids (..., Q) to bits (..., D) int64."""
    return torch.cat([ids_Q[..., q, None] >> torch.arange(n, device=ids_Q.device) & 1 for q, n in enumerate(sizes)], -1)


class LFQ(Quantizer):
    """Codes are -1 and 1, any latents.  A value that is not above 0 gives -1."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.lfq", label="signs"):
        """``bits`` channels; ``factors`` are the bits of each of several codebooks (none: one of ``2 ** bits`` codes).

        A code's entries are plus and minus ``scale``.
        """

        bits: int = 10
        factors: tuple[int, ...] = ()
        beta: float = 0.25
        entropy: Entropy | None = Entropy(weight=0.02)
        scale: Added[float] = 1.0

        def __post_init__(self) -> None:
            if self.factors and (min(self.factors) < 1 or sum(self.factors) != self.bits):
                raise ConfigError(f"quantizer.factors={list(self.factors)}: must be positive and add up to bits={self.bits}")
            if self.bits < 1 or max(self.sizes) > 24:
                raise ConfigError(f"quantizer.bits={self.bits}, factors={list(self.factors)}: a codebook has 1 to 24 bits")
            if self.beta < 0 or self.scale <= 0:
                raise ConfigError(f"quantizer.beta={self.beta}, scale={self.scale}: beta must not be negative, scale positive")

        @property
        def sizes(self) -> tuple[int, ...]:
            """Bits of each codebook."""
            return self.factors or (self.bits,)

        def channels(self) -> tuple[int, int]:
            return self.bits, self.bits

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            own = tuple(2**n for n in self.sizes) if len(set(self.sizes)) > 1 else ()
            return TokenLayout(grids=(grid,), vocabulary=2 ** max(self.sizes), codebooks=len(self.sizes), vocabularies=own)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.scale = config.scale  # the absolute value of a code's entries
        books = tuple(f"book{q}" for q in range(len(config.sizes))) if len(config.sizes) > 1 else ("",)
        self.usage = Usage(2 ** max(config.sizes), books)

    def enter(self, z_BCHW: Tensor) -> Tensor:
        """Latents as they are compared to codes, (B, H, W, D)."""
        return exact(z_BCHW).permute(0, 2, 3, 1)

    def _ids(self, z_BHWD: Tensor) -> Tensor:
        ids_BLQ = pack(z_BHWD.detach() > 0, self.config.sizes).flatten(1, 2)
        return ids_BLQ if len(self.config.sizes) > 1 else ids_BLQ[..., 0]

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; losses are commitment and entropy (equations 4 and 5 of arXiv:2310.05737)."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BHWD = self.enter(z_BCHW)
            q_BHWD = torch.where(z_BHWD > 0, self.scale, -self.scale).to(z_BHWD)
            losses = {"commitment": self.config.beta * F.mse_loss(z_BHWD, q_BHWD)}
            if self.config.entropy is not None:
                losses["entropy"] = self.config.entropy(*self.config.entropy.of_bits(z_BHWD.flatten(0, 2), self.scale))
            ids = self._ids(z_BHWD)
            z_BHWD = _straight(z_BHWD, q_BHWD)
        usage = self.usage.count(list(ids.unbind(-1)) if ids.ndim == 3 else [ids])
        if self.training and draws is not None:
            self.usage.observe(usage)
        return Quantized(z_BHWD.permute(0, 3, 1, 2), ids, losses, {"usage": usage})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L), or (B, L, Q) for several codebooks."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return self._ids(self.enter(z_BCHW))

    def lookup(self, ids: Tensor) -> Tensor:
        """Codes (B, D, H, W) of ids (B, L) or (B, L, Q)."""
        bit_BLD = unpack(ids if ids.ndim == 3 else ids[..., None], self.config.sizes)
        return ((2 * bit_BLD - 1) * self.scale).transpose(1, 2).unflatten(2, self.grid)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Use and perplexity of each codebook."""
        return self.usage.after_step()


class BSQ(LFQ):
    """Latents have length ``scale``, codes are the corners of a cube in the sphere: entries ±scale / sqrt(D)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(LFQ.Config, tag="quantizer.bsq", label="signs on a sphere"):
        """As of ``LFQ``; distances on the sphere are small, so is the temperature's effect."""

        entropy: Entropy | None = Entropy(weight=0.02, temperature=0.1)

    def __init__(self, config: LFQ.Config, grid: tuple[int, int]) -> None:
        super().__init__(config, grid)
        self.scale = config.scale / math.sqrt(config.bits)

    def enter(self, z_BCHW: Tensor) -> Tensor:
        return F.normalize(super().enter(z_BCHW), dim=-1) * self.config.scale

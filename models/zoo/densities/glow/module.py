"""A multi-scale flow of convolutional couplings.

Shapes: B rows, C channels, H W image; at scale k latents (B, C_k, H / 2^k, W / 2^k).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions
from tokenloom.models.core.signals import SignalSpec, text
from tokenloom.models.parts.flows.convolutional import ActNorm, Chain, Coupling, FullMixing, Mixing, ZeroConv
from tokenloom.models.parts.flows.first_batch import FirstBatch

#: Values of a pixel: -1 + 2 v / 255 for v from 0 to 255.
LEVELS = 256


class Glow(FirstBatch):
    """Squeeze, steps of flow, and half of the channels split off as a latent, at each scale (arXiv:1807.03039, figure 2)."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    options = {"temperature": lambda value: {"temperature": float(value)}}

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.glow"):
        """``scales`` of ``steps`` each, with couplings of ``width``; ``mixing``: 1x1 convolutions by triangular factors or by a full
        matrix (but the last scale's, which have factors); images are seen in ``bits`` a value (8: as they are); sampling scales
        latents by ``temperature``."""

        scales: int = 4
        steps: int = 32
        width: int = 512
        coupling: Literal["affine", "additive"] = "affine"
        mixing: Literal["factors", "full"] = "factors"
        bits: int = 8
        temperature: float = 0.7

        def __post_init__(self) -> None:
            for name in ("scales", "steps", "width"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
            if not 1 <= self.bits <= 8 or not 0 <= self.temperature < math.inf:
                raise ConfigError(f"bits={self.bits}, temperature={self.temperature}: 1 to 8 bits, temperature finite and not negative")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "convolutions", "head": f"{self.coupling} coupling", "objective": "NLL"}

        def build(self, *, signal: SignalSpec, **given: Any) -> Glow:
            """The density of images of this shape.

            Raises:
                ConfigError: so many scales do not fit it.
            """
            if any(side % 2**self.scales for side in signal.plane):
                raise ConfigError(f"scales={self.scales}: the size {text(signal.shape)} must be divisible by {2**self.scales}")
            return Glow(self, (signal.channels, *signal.shape))

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.flows, self.priors = nn.ModuleList(), nn.ModuleList()
        channels = shape[0]
        for scale in range(config.scales):
            channels, last = 4 * channels, scale == config.scales - 1
            mixing = Mixing if config.mixing == "factors" or last else FullMixing
            parts = [(ActNorm(channels), mixing(channels), Coupling(channels, config.width, config.coupling)) for _ in range(config.steps)]
            self.flows.append(Chain(*(part for one in parts for part in one)))
            self.priors.append(ZeroConv(channels if last else channels // 2, 2 * channels if last else channels))
            channels //= 2

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Latents of all scales, their log-probability (B,) and the log-determinant (B,), of images in [-1/2, 1/2]."""
        latents, prior, total = [], x.new_zeros(len(x)), x.new_zeros(len(x))
        for index, flow in enumerate(self.flows):
            x, one = flow(F.pixel_unshuffle(x, 2))
            x, z = (x, x) if index == len(self.flows) - 1 else x.chunk(2, 1)
            mean, log_std = self.prior(index, x)
            prior = prior - (0.5 * math.log(2 * math.pi) + log_std + 0.5 * ((z - mean) / log_std.exp()).square()).flatten(1).sum(1)
            latents.append(z)
            total = total + one
        return latents, prior, total

    def prior(self, index: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of a scale's latents, given what continues; of the last scale's, of nothing."""
        given = torch.zeros_like(kept) if index == len(self.flows) - 1 else kept
        mean, log_std = cast(ZeroConv, self.priors[index])(given).chunk(2, 1)
        return mean, log_std

    def inverse(self, latents: list[Tensor], kind: Literal["latents", "noise"] = "latents") -> Tensor:
        """The image of latents, or of standard normal noise in their places, which the priors scale and shift."""
        x: Tensor | None = None
        for index in reversed(range(len(self.flows))):
            z = latents[index]
            if kind == "noise":
                mean, log_std = self.prior(index, z if x is None else x)
                z = mean + log_std.exp() * z
            x = F.pixel_shuffle(cast(Chain, self.flows[index]).inverse(z if x is None else torch.cat([x, z], 1)), 2)
        assert x is not None
        return x

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set activation norms by images."""
        for flow in self.flows:
            x = cast(Chain, flow).start(F.pixel_unshuffle(x, 2)).chunk(2, 1)[0]

    def binned(self, level: Tensor, noise: Tensor) -> Tensor:
        """Images in [-1/2, 1/2] with uniform noise of one of 2^bits values, of levels 0 to 255."""
        bins = 2**self.config.bits
        kept = level if bins == LEVELS else torch.floor(level / (LEVELS / bins))
        return kept / bins - 0.5 + noise / bins

    def _levels(self, batch: Batch) -> Tensor:
        return ((self.signal_of(batch) + 1) * ((LEVELS - 1) / 2)).round()

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: negative log-likelihood in bits a value of 2^bits (a bound, by uniform noise)."""
        x = self.binned(self._levels(batch), draws.uniform(*self.shape))
        self.keep_first(x)
        return {"loss": self.bits_per_dimension(self._log_prob(x)).mean()}

    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) nats of values of 8 bits: those of 2^bits, each of which stands for as many values alike."""
        found = self._log_prob(self.binned(self._levels(batch), draws.uniform(*self.shape)))
        return found - math.prod(self.shape) * (8 - self.config.bits) * math.log(2)

    def _log_prob(self, x: Tensor) -> Tensor:
        _, prior, log_determinant = self(x)
        return prior + log_determinant - math.prod(self.shape) * self.config.bits * math.log(2)

    @torch.no_grad()
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One image (B, C, H, W) on the data's levels for each of the draws' samples."""
        noise, (channels, high, wide), own = [], self.shape, self.config
        for scale in range(own.scales):
            channels, high, wide = (4 if scale == own.scales - 1 else 2) * channels, high // 2, wide // 2
            noise.append(own.temperature * draws.normal("latent", scale, channels, high, wide).to(self.get_buffer("started").device))
        x = self.inverse(noise, "noise")
        level = ((x + 0.5) * 2**own.bits).floor().clamp(0, 2**own.bits - 1) * 2 ** (8 - own.bits)
        return level / 127.5 - 1

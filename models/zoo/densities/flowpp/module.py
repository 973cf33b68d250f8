"""A multi-scale flow of mixture couplings, of images whose discrete values a flow of its own makes continuous.

Shapes: B rows, C channels, H W image, A channels of an auxiliary input.
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
from tokenloom.models.parts.flows.convolutional import ActNorm, FullMixing
from tokenloom.models.parts.flows.first_batch import FirstBatch
from tokenloom.models.parts.flows.mixture import GatedConv, MixtureCoupling

LEVELS = 256
#: The share of the logistic function's range that values take (arXiv:1605.08803, section 4.1).
BOUND = 0.9
Cut = Literal["channels", "checkers"]


def halves(x: Tensor, cut: Cut) -> Tensor:
    """Both parts of an image side by side as channels: its halves, or the two colours of a chessboard, half as wide."""
    if cut == "channels":
        return x
    pair = x.unflatten(3, (-1, 2))
    first = _first(x.shape[2], pair)
    return torch.cat([torch.where(first, pair[..., 0], pair[..., 1]), torch.where(first, pair[..., 1], pair[..., 0])], 1)


def whole(y: Tensor, cut: Cut) -> Tensor:
    """Inverse of ``halves``."""
    if cut == "channels":
        return y
    a, b = y.chunk(2, 1)
    first = _first(y.shape[2], y)
    return torch.stack([torch.where(first, a, b), torch.where(first, b, a)], -1).flatten(3)


def _first(rows: int, like: Tensor) -> Tensor:
    return (torch.arange(rows, device=like.device) % 2 == 0)[:, None]


class Couplings(nn.Module):
    """So many times: activation norm, 1x1 convolution, coupling, and the halves change places."""

    def __init__(self, count: int, cut: Cut, channels: int, coupling: Any) -> None:
        super().__init__()
        self.cut: Cut = cut
        self.norms = nn.ModuleList(ActNorm(2 * channels, "batch") for _ in range(count))
        self.mixings = nn.ModuleList(FullMixing(2 * channels, "identity") for _ in range(count))
        self.couplings = nn.ModuleList(coupling(channels) for _ in range(count))

    def forward(self, x: Tensor, aux: Tensor | None = None, draws: Draws | None = None, start: bool = False) -> tuple[Tensor, Tensor]:
        """Output and log-determinant (B,); with ``start`` activation norms are set by x."""
        x, total = halves(x, self.cut), x.new_zeros(len(x))
        for norm, mixing, coupling in zip(self.norms, self.mixings, self.couplings):
            if start:
                cast(ActNorm, norm).start(x)
            for part, more in ((norm, ()), (mixing, ()), (coupling, (aux, draws))):
                x, one = part(x, *more)
                total = total + one
            x = torch.cat(x.chunk(2, 1)[::-1], 1)
        return whole(x, self.cut), total

    def inverse(self, y: Tensor) -> Tensor:
        """x of an output."""
        y = halves(y, self.cut)
        for norm, mixing, coupling in reversed(list(zip(self.norms, self.mixings, self.couplings))):
            y = cast(MixtureCoupling, coupling).inverse(torch.cat(y.chunk(2, 1)[::-1], 1))
            y = cast(ActNorm, norm).inverse(cast(FullMixing, mixing).inverse(y))
        return whole(y, self.cut)


class FlowPP(FirstBatch):
    """``p(x) >= E p(f(logit((x + u) / 256))) |det f'| / q(u | x)``, u drawn by a flow that sees x (arXiv:1902.00275)."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    starts_from = 2

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.flowpp"):
        """Of each of the ``scales`` the number of couplings by channels and by a chessboard; ``width``, ``blocks`` and ``components``
        of a coupling; ``dequant`` blocks in those of the dequantisation (0: uniform noise), so many flows with so many components
        and channels of what they see; dropout of a share ``drop`` of channels."""

        scales: tuple[tuple[int, int], ...]
        width: int = 96
        blocks: int = 10
        components: int = 32
        dequant: int = 2
        dequant_flows: int = 4
        dequant_components: int = 32
        dequant_channels: int = 32
        attention: Literal["yes", "no"] = "yes"
        drop: float = 0.2

        def __post_init__(self) -> None:
            if not self.scales or min(min(pair) for pair in self.scales) < 0 or min(self.components, self.dequant_components) < 1:
                raise ConfigError(f"scales={self.scales}, components={self.components}: pairs that are not negative, a component at least")
            if self.attention == "yes" and self.width % 4:
                raise ConfigError(f"width={self.width}: attention needs a multiple of four")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "gated convolutions", "head": "mixture coupling", "objective": "NLL"}

        def build(self, *, signal: SignalSpec, **given: Any) -> FlowPP:
            """The density of images of this shape.

            Raises:
                ConfigError: these scales do not fit it.
            """
            steps = 2 ** (len(self.scales) - 1)
            if signal.plane[0] % steps or signal.plane[1] % (2 * steps):
                raise ConfigError(f"scales={self.scales}: the size {text(signal.shape)} must be divisible by {steps} and {2 * steps}")
            if signal.channels % 2 and self.scales[0][0]:
                raise ConfigError(f"scales={self.scales}: {signal.channels} channels have no halves; begin with no couplings by channels")
            return FlowPP(self, (signal.channels, *signal.shape))

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        own = (config.drop, config.attention == "yes")

        def coupling(channels: int) -> MixtureCoupling:
            return MixtureCoupling(channels, config.width, config.blocks, config.components, *own)

        def dequantising(channels: int) -> MixtureCoupling:
            return MixtureCoupling(channels, config.width, config.dequant, config.dequant_components, *own, config.dequant_channels)

        self.channels, self.checkers = nn.ModuleList(), nn.ModuleList()
        for scale, (by_channels, by_checkers) in enumerate(config.scales):
            channels = shape[0] * 2**scale
            self.channels.append(Couplings(by_channels, "channels", channels // 2, coupling))
            self.checkers.append(Couplings(by_checkers, "checkers", channels, coupling))
        self.noise = Couplings(config.dequant_flows, "checkers", shape[0], dequantising) if config.dequant else None
        self.seen = nn.ModuleList()
        if config.dequant:
            width = config.dequant_channels
            self.seen.extend([nn.Conv2d(2 * shape[0], width, 3, padding=1), *(GatedConv(width, config.drop) for _ in range(3))])

    def forward(self, x: Tensor, draws: Draws | None = None, start: bool = False) -> tuple[Tensor, Tensor]:
        """Latents of the image's shape and log-determinant (B,), of logits."""
        return self._scale(0, x, draws, start)

    def _scale(self, index: int, x: Tensor, draws: Draws | None, start: bool) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for part in (self.channels[index], self.checkers[index]):
            x, one = part(x, None, draws, start)
            total = total + one
        if index + 1 < len(self.config.scales):
            going, staying = F.pixel_unshuffle(x, 2).chunk(2, 1)
            going, one = self._scale(index + 1, going, draws, start)
            x, total = F.pixel_shuffle(torch.cat([going, staying], 1), 2), total + one
        return x, total

    def inverse(self, z: Tensor, index: int = 0) -> Tensor:
        """Logits of latents."""
        if index + 1 < len(self.config.scales):
            going, staying = F.pixel_unshuffle(z, 2).chunk(2, 1)
            z = F.pixel_shuffle(torch.cat([self.inverse(going, index + 1), staying], 1), 2)
        return cast(Couplings, self.channels[index]).inverse(cast(Couplings, self.checkers[index]).inverse(z))

    def dequantized(self, image: Tensor, noise: Tensor, draws: Draws | None = None, start: bool = False) -> tuple[Tensor, Tensor]:
        """Values in (0, 1) of images v / 255, and minus the log-density (B,) of what was added to v, by noise: normal, or uniform where no
        flow makes more of it (section 3.1)."""
        total = image.new_zeros(len(image))
        if self.noise is not None:
            aux = self.seen[0](halves(image - 0.5, "checkers"))
            for conv in self.seen[1:]:
                aux = conv(aux, None, draws)
            total = 0.5 * (noise.square() + math.log(2 * math.pi)).flatten(1).sum(1)
            u, one = self.noise(noise, aux, draws, start)
            total = total + one + (F.logsigmoid(u) + F.logsigmoid(-u)).flatten(1).sum(1)
            noise = u.sigmoid()
        return (image * (LEVELS - 1) + noise) / LEVELS, total

    @staticmethod
    def logits(x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of values in (0, 1), which fill a part of the range, and the log-determinant (B,)."""
        y = (((2 * x - 1) * BOUND + 1) / 2).logit()
        log = F.softplus(y) + F.softplus(-y) - F.softplus(torch.tensor(math.log((1 - BOUND) / BOUND), dtype=y.dtype, device=y.device))
        return y, log.flatten(1).sum(1)

    def bound(self, image: Tensor, noise: Tensor, draws: Draws | None = None) -> Tensor:
        """(B,) nats of images v / 255, by noise of the dequantisation."""
        x, first = self.dequantized(image, noise, draws)
        y, second = self.logits(x)
        z, third = self(y, draws)
        prior = -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return prior + first + second + third - math.prod(self.shape) * math.log(LEVELS)

    @torch.no_grad()
    def start(self, image: Tensor, noise: Tensor) -> None:
        """Set activation norms by images and the noise of their dequantisation."""
        x, _ = self.dequantized(image, noise, start=True)
        self(self.logits(x)[0], start=True)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: the negative bound in bits a value, less the 8 bits by which 256 levels are told apart."""
        image, noise = self._given(batch, draws)
        self.keep_first(image, noise)
        bits = self.bits_per_dimension(self.bound(image, noise, draws if self.training else None)).mean()
        return {"loss": bits - math.log2(LEVELS), "bits_per_dimension": bits.detach()}

    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) nats, a lower bound in expectation."""
        return self.bound(*self._given(batch, draws))

    def _given(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        image = (self.signal_of(batch) + 1) / 2
        noise = draws.normal(*self.shape) if self.noise is not None else draws.uniform(*self.shape)
        return image, noise.to(image)

    @torch.no_grad()
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One image (B, C, H, W) on the data's levels for each of the draws' samples."""
        z = draws.normal("latent", 0, *self.shape).to(self.get_buffer("started").device)
        x = ((2 * self.inverse(z).sigmoid() - 1) / BOUND + 1) / 2
        level = (x * LEVELS).floor().clamp(0, LEVELS - 1)
        return level / ((LEVELS - 1) / 2) - 1

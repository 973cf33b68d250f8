"""Images that move along the field of charges in a space of more dimensions, from far away to the data.

Shapes: B rows, C H W image, N = C H W, D further dimensions, R reference images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Batch, Conditions, Density
from tokenloom.models.core.requests import labels_of
from tokenloom.models.core.signals import SignalSpec, text
from tokenloom.models.zoo.densities.pfgmpp.unet import UNet

#: Values of a pixel: -1 + 2 v / 255 for v from 0 to 255.
LEVELS = 256
STEP = 2 / (LEVELS - 1)
#: Of images in [-1, 1], as the released models have it.
DATA = 0.5


@dataclass(frozen=True, kw_only=True)
class FieldSampler(configs.Config, tag="sampler.field"):
    """``steps`` of Heun between noise levels spaced by ``rho`` (arXiv:2206.00364, algorithm 2); ``churn`` raises levels between ``low`` and
    ``high`` anew, by noise of this size ``noise``."""

    steps: int = 18
    smallest: float = 0.002
    largest: float = 80.0
    rho: float = 7.0
    churn: float = 0.0
    low: float = 0.0
    high: float = 1e6
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.smallest < self.largest or self.rho <= 0:
            raise ConfigError(
                f"sampler.steps={self.steps}, smallest={self.smallest}, largest={self.largest}, rho={self.rho}: at least two steps between "
                "growing positive levels"
            )

    def levels(self) -> Tensor:
        """(steps + 1,) float64 noise levels from the largest, and zero."""
        share = torch.arange(self.steps, dtype=torch.float64, device="cpu") / (self.steps - 1)
        first, last = self.largest ** (1 / self.rho), self.smallest ** (1 / self.rho)
        return F.pad((first + share * (last - first)) ** self.rho, (0, 1))


class PFGMPP(Density):
    """The density of data moved by ``dx / d sigma = (x - E[y | x]) / sigma``, with ``p(x | y)`` proportional to
    ``(|x - y|^2 + sigma^2 D)^(-(N + D) / 2)`` (arXiv:2302.04265, equation 4)."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.pfgmpp"):
        """``dims``: further dimensions D (0: infinitely many, a diffusion); ``classes`` (0: none), of which a share ``dropout`` is
        withheld in training; noise levels are drawn log-normal with ``mean`` and ``std``."""

        limits: ClassVar = {"mean": Range(-100, 100), "dims": Range(0, 1 << 22)}

        net: UNet.Config
        dims: int = 128
        classes: int = 0
        dropout: float = 0.0
        mean: float = -1.2
        std: float = 1.2
        sampler: FieldSampler = FieldSampler()

        def __post_init__(self) -> None:
            if self.dims < 0 or self.classes < 0 or not 0 <= self.dropout < 1 or self.std <= 0:
                raise ConfigError(
                    f"dims={self.dims}, classes={self.classes}, dropout={self.dropout}, std={self.std}: not negative, dropout in [0, 1), "
                    "std positive"
                )

        @property
        def axis_labels(self) -> dict[str, str]:
            kind = f"Poisson flow, D = {self.dims}" if self.dims else "diffusion"
            return {"net": "U-Net", "head": kind, "objective": "denoising", "condition": "class" if self.classes else "none"}

        def build(self, *, signal: SignalSpec, **given: Any) -> PFGMPP:
            """The density of square images.

            Raises:
                ConfigError: other images.
            """
            if signal.plane[0] != signal.plane[1]:
                raise ConfigError(f"signal: {text(signal.shape)}: this density is of square images")
            return PFGMPP(self, (signal.channels, *signal.shape))

    def __init__(self, config: Config, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.net = config.net.build(shape[1], shape[0], config.classes)

    def denoised(self, x: Tensor, sigma_B: Tensor, class_BK: Tensor | None = None, draws: Draws | None = None) -> Tensor:
        """E[y | x] by the net, whose inputs and outputs have unit variance (arXiv:2206.00364, table 1)."""
        s = sigma_B.view(-1, 1, 1, 1)
        total = s.square() + DATA**2
        out = self.net(x / total.sqrt(), sigma_B.log() / 4, class_BK, None, draws)
        return DATA**2 / total * x + s * DATA / total.sqrt() * out

    def kernel(self, normal_BN: Tensor, other_BD: Tensor | None, sigma_B: Tensor) -> Tensor:
        """Draws of the noise: ``r g / |h|`` with r = sigma sqrt(D), g of N and h of D normal numbers, is distributed as above."""
        size = sigma_B.view(-1, *[1] * (normal_BN.ndim - 1))
        if other_BD is None:
            return size * normal_BN
        return size * math.sqrt(other_BD.shape[1]) * normal_BN / other_BD.norm(dim=1).view_as(size)

    def weight(self, sigma_B: Tensor) -> Tensor:
        """(B, 1, 1, 1) by which errors at all levels count alike (arXiv:2206.00364, equation 8)."""
        s = sigma_B.view(-1, 1, 1, 1)
        return (s.square() + DATA**2) / (s * DATA).square()

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: the weighted squared error of the denoised image, a value."""
        y, own = self.signal_of(batch), self.config
        sigma = (own.mean + own.std * draws.normal().to(y)).exp()
        normal, other = draws.normal(*self.shape).to(y), draws.normal(own.dims).to(y) if own.dims else None
        classes = self._classes(batch.conditions)
        if classes is not None and own.dropout:
            classes = classes * (draws.uniform(1) >= own.dropout)
        found = self.denoised(y + self.kernel(normal, other, sigma), sigma, classes, draws if self.training else None)
        return {"loss": (self.weight(sigma) * (found - y).square()).mean()}

    def prior(self, x_BN: Tensor, sigma: float) -> Tensor:
        """(B,) log-density of the noise at a level."""
        count, dims = x_BN.shape[1], self.config.dims
        square = x_BN.square().sum(1)
        if not dims:
            return -0.5 * square / sigma**2 - count * math.log(sigma * math.sqrt(2 * math.pi))
        r2 = sigma**2 * dims
        constant = math.lgamma((count + dims) / 2) - math.lgamma(dims / 2) - 0.5 * count * math.log(math.pi * r2)
        return constant - 0.5 * (count + dims) * (square / r2).log1p()

    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """(B,) nats: a bound by uniform noise of one level, its density by Heun's steps along the flow, whose divergence is estimated
        with random signs (arXiv:2011.13456, appendix D.2)."""
        x = self.signal_of(batch) + STEP * (draws.uniform(*self.shape) - 0.5)
        sign = 2 * draws.bernoulli(0.5, *self.shape).to(x) - 1
        classes, levels, change = self._classes(batch.conditions), self.config.sampler.levels()[:-1].flip(0).tolist(), x.new_zeros(len(x))
        for now, then in pairwise(levels):
            slope, spread = self._field(x, now, sign, classes)
            other, later = self._field(x + (then - now) * slope, then, sign, classes)
            x = x + (then - now) * 0.5 * (slope + other)
            change = change + (then - now) * 0.5 * (spread + later)
        return self.prior(x.flatten(1), levels[-1]) + change + math.prod(self.shape) * math.log(STEP)

    def _field(self, x: Tensor, sigma: float, sign: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Slope of the flow and an estimate of its divergence (B,)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            slope = (x - self.denoised(x, x.new_full((len(x),), sigma), classes)) / sigma
            (gradient,) = torch.autograd.grad((slope * sign).sum(), x)
        return slope.detach(), (gradient * sign).flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One image (B, C, H, W) on the data's levels for each of the draws' samples."""
        own, like = self.config, next(self.parameters())
        draws = draws.to(like.device)
        normal, other = draws.normal("latent", 0, *self.shape), draws.normal("far", 0, own.dims) if own.dims else None
        start = self.kernel(normal, other, normal.new_full((len(normal),), own.sampler.largest))
        classes = self._classes(conditions) if conditions is not None else None
        *_, x = trajectory(
            own.sampler,
            start,
            lambda x, sigma: self.denoised(x.to(like), like.new_full((len(x),), sigma), classes).double(),
            lambda step: draws.normal("churn", step, *self.shape),
        )
        return ((x.clamp(-1, 1) + 1) / STEP).round().to(like) * STEP - 1

    def _classes(self, conditions: Conditions) -> Tensor | None:
        """(B, K) one-hot, zeros for no class."""
        label = labels_of(conditions) if self.config.classes else None
        if label is None:
            return None
        known = (label >= 0) & (label < self.config.classes)
        like = next(self.parameters())
        return F.one_hot(label.clamp(0, self.config.classes - 1), self.config.classes).to(like) * known[:, None]


def trajectory(
    own: FieldSampler, start: Tensor, denoised: Callable[[Tensor, float], Tensor], noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """float64 states after each step, from the largest level to none."""
    x, levels = start.double(), own.levels().tolist()
    for i, (now, then) in enumerate(pairwise(levels)):
        if own.churn and own.low <= now <= own.high:
            raised = now * (1 + min(own.churn / own.steps, math.sqrt(2) - 1))
            x, now = x + math.sqrt(raised**2 - now**2) * own.noise * noise(i).double(), raised
        slope = (x - denoised(x, now)) / now
        there = x + (then - now) * slope
        if then:  # the second half of Heun's step
            other = (there - denoised(there, then)) / then
            there = x + (then - now) * 0.5 * (slope + other)
        x = there
        yield x


def stable_targets(perturbed_BN: Tensor, sigma_B: Tensor, reference_RN: Tensor, dims: int) -> Tensor:
    """(B, N) E[y | x] where y is one of the reference images, in float64 (section 3.2; arXiv:2302.00670 where ``dims`` is 0)."""
    square = (perturbed_BN[:, None].double() - reference_RN.double()).square().sum(-1)
    if not dims:
        weight = (-square / (2 * sigma_B.double()[:, None].square())).softmax(1)
    else:
        r2 = dims * sigma_B.double()[:, None].square()
        weight = (-0.5 * (perturbed_BN.shape[1] + dims) * (square / r2).log1p()).softmax(1)
    return (weight @ reference_RN.double()).to(perturbed_BN)

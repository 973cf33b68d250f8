"""A Gaussian head: mean and deviation of every channel of a continuous token, from the position's hidden state; an exact likelihood.

Shapes: B rows, N positions, C channels, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import ContinuousHead
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment


@dataclass(frozen=True, kw_only=True)
class GaussianSampler(HeadSampler, tag="head_sampler.gaussian"):
    """``temperature`` scales the deviation; 0 is the mean."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"sample.head.temperature={self.temperature}: must not be negative")


class GaussianHead(ContinuousHead):
    """log p(x | h) = -sum_c [(x_c - m_c)^2 / 2 s_c^2 + log s_c + log(2 pi) / 2], m and log s affine in h; channels are independent."""

    likelihood = "exact"
    settings = GaussianSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.gaussian", label="Gaussian"):
        """``least``: smallest deviation, added to what is predicted, so that no density grows without bound."""

        least: float = 1e-3

        def __post_init__(self) -> None:
            if self.least <= 0:
                raise ConfigError(f"head.least={self.least}: must be positive")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        self.config, self.channels = config, self.channels_of(layout)
        self.out = nn.Linear(width, 2 * self.channels)
        nn.init.zeros_(self.out.weight)  # a standard normal at first
        nn.init.zeros_(self.out.bias)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (…, C) of outputs (…, 2 C), in float32."""
        mean, log_deviation = output.float().chunk(2, -1)
        return mean, log_deviation.exp() + self.config.least

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) the negative log-likelihood of tokens (B, N, C), in nats."""
        mean, deviation = self.split(self.out(h_BND))
        z = (target.float() - mean) / deviation
        return (0.5 * z.square() + deviation.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, hidden: Hidden, own: GaussianSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """One draw a channel; guidance mixes means, not deviations."""
        mean, deviation = self.split(hidden.guided(self.out, of=self.channels))
        noise = draws.normal("head", moment.step, *mean.shape[1:]).to(mean)
        return mean + own.temperature * deviation * noise

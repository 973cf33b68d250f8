"""Mixtures of Gaussians: densities of a few features at once, drawn exactly, and re-drawn under guidance.

Shapes: … any leading axes, S samples, K components, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.sampling.head_sampler import HeadSampler

Within = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class MixtureSampler(HeadSampler, tag="head_sampler.mixture"):
    """``temperature`` scales deviations.  Guidance draws ``candidates`` and takes one of them with a probability that grows with
    ``(p(x | condition) / p(x | null)) ** w`` (ARINAR, arXiv:2503.02883, section 3.3).  ``within`` a token both move from feature to
    feature, away from 1 or towards it (the released code's bilevel schedule)."""

    temperature: float = 1.0
    candidates: int = 1000
    within: Within = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or self.candidates < 1:
            raise ConfigError(
                f"sample.head.temperature={self.temperature}, candidates={self.candidates}: not negative, at least one candidate"
            )

    def at(self, step: int, steps: int, weight: float | Tensor) -> tuple[float, float | Tensor]:
        """Temperature and weight of guidance for one of the steps within a token."""
        share = {
            "constant": 1.0,
            "linear": 1 + 0.5 * (step + 1) / steps,
            "cosine": 0.5 * (1 + math.cos(math.pi * (step + 1) / steps)),
        }[self.within]
        return 1 + (self.temperature - 1) * share, weight * share


@dataclass(frozen=True)
class Mixture:
    """Log-weights (…, K), means and log-variances (…, K, F) of independent features."""

    log_weight: Tensor
    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, output: Tensor, components: int) -> Mixture:
        """Of outputs (…, 2 K F + K): means, log-variances, logits of the weights; in float32."""
        moments, logits = output.float().split([output.shape[-1] - components, components], -1)
        mean, log_variance = (part.unflatten(-1, (components, -1)) for part in moments.chunk(2, -1))
        return cls(logits.log_softmax(-1), mean, log_variance)

    def rows(self, which: slice) -> Mixture:
        """Those of some rows."""
        return Mixture(self.log_weight[which], self.mean[which], self.log_variance[which])

    def log_prob(self, x: Tensor) -> Tensor:
        """(…) log-density in nats at features (…, F)."""
        z = (x.unsqueeze(-2) - self.mean).square() * (-self.log_variance).exp()
        return (self.log_weight - 0.5 * (z + self.log_variance + math.log(2 * math.pi)).sum(-1)).logsumexp(-1)

    def over(self) -> Mixture:
        """The same with an axis for samples before the components."""
        return Mixture(self.log_weight.unsqueeze(-2), self.mean.unsqueeze(-3), self.log_variance.unsqueeze(-3))

    def draw(self, component: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """Features (…, S, F) of components (…, S) and standard normal numbers (…, S, F)."""
        index = component[..., None].expand(*component.shape, self.mean.shape[-1])
        mean, deviation = (part.gather(-2, index) for part in (self.mean, (0.5 * self.log_variance).exp()))
        return mean + temperature * deviation * noise


Pick = Callable[[Tensor, Tensor], Tensor]


def redrawn(
    given: Mixture, null: Mixture, weight: float | Tensor, temperature: float, component_u: Tensor, noise: Tensor, u: Tensor, pick: Pick
) -> Tensor:
    """Features (…, F): one of S candidates from ``given``, by ``pick(logits, uniform numbers)`` for component and candidate."""
    over = given.over()
    x = given.draw(pick(over.log_weight, component_u), noise, temperature)
    index = pick((over.log_prob(x) - null.over().log_prob(x)) * weight, u)
    return torch.take_along_dim(x, index[..., None, None], -2).squeeze(-2)

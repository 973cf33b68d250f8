"""Gaussian diffusion at discrete times: the noising chain, a shorter chain over some of its times, and the reverse steps
(arXiv:2006.11239; improved, arXiv:2102.09672).

Shapes: T times, C channels; x, noise and predictions (…, C), coefficients (…, 1) or numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError

#: What a chain knows of a time, each a coefficient of x_0, x_t or noise, or a variance.
NAMES = ("signal", "noise", "to_x0", "eps_to_x0", "mean_x0", "mean_x", "log_low", "log_high")
Coefficients = Mapping[str, Any]


class Step(NamedTuple):
    """One reverse step: the mean and log-variance of q(x_s | x_t, x_0 predicted), and that prediction."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class Chain:
    """``x_t = signal_t x_0 + noise_t eps`` at increasing times; coefficients in float64 until they meet a tensor."""

    def __init__(self, kept: Sequence[float], times: Sequence[int] | None = None) -> None:
        """``kept`` is the share of signal variance left at each time, ``times`` what the net is told (None: 0, 1, …)."""
        self.kept = list(kept)
        self.times = list(range(len(kept))) if times is None else list(times)
        before = [1.0, *self.kept[:-1]]
        beta = [1 - now / then for now, then in zip(self.kept, before)]
        variance = [b * (1 - then) / (1 - now) for b, now, then in zip(beta, self.kept, before)]
        # The first posterior variance is zero: its logarithm is taken of the second (arXiv:2102.09672, section 3.1).
        variance[0] = variance[1] if len(variance) > 1 else beta[0]
        self.columns: dict[str, list[float]] = {
            "signal": [math.sqrt(a) for a in self.kept],
            "noise": [math.sqrt(1 - a) for a in self.kept],
            "to_x0": [math.sqrt(1 / a) for a in self.kept],
            "eps_to_x0": [math.sqrt(1 / a - 1) for a in self.kept],
            # arXiv:2006.11239, equation 7
            "mean_x0": [b * math.sqrt(then) / (1 - now) for b, now, then in zip(beta, self.kept, before)],
            "mean_x": [(1 - then) * math.sqrt(1 - b) / (1 - now) for b, now, then in zip(beta, self.kept, before)],
            "log_low": [math.log(v) for v in variance],
            "log_high": [math.log(b) for b in beta],
        }

    def __len__(self) -> int:
        return len(self.kept)

    @classmethod
    def cosine(cls, count: int = 1000) -> Chain:
        """Signal variance along ``cos^2``, no step taking more than 0.999 of it (arXiv:2102.09672, equation 17)."""
        f = [math.cos((t / count + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(count + 1)]
        return cls(_products([max(later / now, 1 - 0.999) for now, later in pairwise(f)]))

    @classmethod
    def linear(cls, count: int = 1000, first: float = 1e-4, last: float = 0.02) -> Chain:
        """Variance of the noise added at each time on a line (arXiv:2006.11239, section 4)."""
        return cls(_products([1 - (first + (last - first) * t / (count - 1)) for t in range(count)]))

    def at_times(self, times: Sequence[int]) -> Chain:
        """The chain over some of the times alone (arXiv:2102.09672, section 4)."""
        return Chain([self.kept[t] for t in times], [self.times[t] for t in times])

    def table(self) -> Tensor:
        """(8, T) float32: all coefficients, for ``look_up``."""
        return torch.tensor([self.columns[name] for name in NAMES], dtype=torch.float64).float()

    def at(self, index: int) -> Coefficients:
        """Coefficients of one time, as numbers."""
        return {name: column[index] for name, column in self.columns.items()}


def _products(factors: Sequence[float]) -> list[float]:
    kept, result = 1.0, []
    for factor in factors:
        kept *= factor
        result.append(kept)
    return result


def look_up(table: Tensor, t: Tensor) -> Coefficients:
    """Coefficients of indices (…) of a table, each (…, 1)."""
    return dict(zip(NAMES, table[:, t].unsqueeze(-1)))


def evenly(count: int, steps: int) -> list[int]:
    """``steps`` of so many times, the first and the last among them."""
    if not 1 <= steps <= count:
        raise ConfigError(f"sample.head.steps={steps}: must be 1 to {count}")
    stride = (count - 1) / (steps - 1) if steps > 1 else 1.0
    return [round(stride * i) for i in range(steps)]


def strided(count: int, steps: int) -> list[int]:
    """``steps`` of so many times from the first on, one whole stride apart (DDIM's, arXiv:2010.02502).

    Raises:
        ConfigError: no whole stride takes so many.
    """
    stride = next((s for s in range(1, count) if len(range(0, count, s)) == steps), None)
    if stride is None:
        raise ConfigError(f"sample.head.steps={steps}: no whole stride takes so many of {count} times; take another number or spacing=even")
    return list(range(0, count, stride))


def noisy(x0: Tensor, eps: Tensor, at: Coefficients) -> Tensor:
    """``x_t`` (arXiv:2006.11239, equation 4)."""
    return at["signal"] * x0 + at["noise"] * eps


def step(x: Tensor, eps: Tensor, share: Tensor | float, at: Coefficients) -> Step:
    """The reverse step of predicted noise; the log-variance lies between the smallest and the largest by ``share`` in [-1, 1]
    (arXiv:2102.09672, equation 15), which is not clipped."""
    x0 = at["to_x0"] * x - at["eps_to_x0"] * eps
    mean = at["mean_x0"] * x0 + at["mean_x"] * x
    part = (share + 1) / 2
    return Step(mean, part * at["log_high"] + (1 - part) * at["log_low"], x0)


def bound(x0: Tensor, x: Tensor, found: Step, at: Coefficients, first: Tensor) -> Tensor:
    """(…) the bound's term of a time in bits a channel: the divergence of the true posterior from the step, and where ``first`` (…)
    the negative log-likelihood of x_0 among 256 values in [-1, 1]."""
    mean = at["mean_x0"] * x0 + at["mean_x"] * x
    gap = found.log_variance - at["log_low"]
    divergence = 0.5 * (gap - 1 + (-gap).exp() + (mean - found.mean).square() * (-found.log_variance).exp())
    nll = -discretised_normal(x0, found.mean, 0.5 * found.log_variance)
    return torch.where(first, nll.mean(-1), divergence.mean(-1)) / math.log(2)


def discretised_normal(x: Tensor, mean: Tensor, log_scale: Tensor, half: float = 1 / 255) -> Tensor:
    """Log-probability that a normal falls within ``half`` of x; beyond the ends +-0.999 all of the tail counts."""
    centred, scale = x - mean, (-log_scale).exp()
    above, below = _normal_cdf(scale * (centred + half)), _normal_cdf(scale * (centred - half))
    middle = (above - below).clamp_min(1e-12).log()
    low, high = above.clamp_min(1e-12).log(), (1 - below).clamp_min(1e-12).log()
    return torch.where(x < -0.999, low, torch.where(x > 0.999, high, middle))


def _normal_cdf(x: Tensor) -> Tensor:
    """The distribution function of a normal, by the usual tanh."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def reverse(
    chain: Chain,
    x: Tensor,
    predict: Callable[[Tensor, int], tuple[Tensor, Tensor | float]],
    noise: Callable[[int], Tensor],
    temperature: float = 1.0,
    before: Callable[[Tensor, int], Tensor] = lambda x, index: x,
) -> list[Tensor]:
    """x after each reverse step, from the last time to the first; ``predict(x, time)`` gives noise and share of the variance,
    ``noise(i)`` that of the i-th step (none in the last), ``before(x, index)`` may replace x before a step."""
    found = []
    for i, index in enumerate(reversed(range(len(chain)))):
        x = before(x, index)
        eps, share = predict(x, chain.times[index])
        one = step(x, eps, share, chain.at(index))
        x = one.mean
        if index:
            deviation = one.log_variance * 0.5
            x = x + temperature * noise(i) * (deviation.exp() if isinstance(deviation, Tensor) else math.exp(deviation))
        found.append(x)
    return found

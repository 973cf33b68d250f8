"""Flow matching on a straight path: noising, times of training, and solvers (arXiv:2209.03003, arXiv:2210.02747, arXiv:2401.08740).

Shapes: … rows and positions, C channels.  Time runs from 0, noise, to 1, data: x_t = (1 - t) noise + t data, and the velocity is
data - noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.sampling.head_sampler import HeadSampler

Times = Literal["uniform", "logit_normal"]
Solver = Literal["euler", "heun", "sde"]


def times(kind: Times, draws: Draws, *shape: int) -> Tensor:
    """(rows, *shape) times in [0, 1]: even, or the sigmoid of standard normal numbers, which dwells on the middle (arXiv:2403.03206)."""
    return draws.uniform(*shape) if kind == "uniform" else draws.normal(*shape).sigmoid()


def between(noise: Tensor, data: Tensor, time: Tensor) -> Tensor:
    """x_t (…, C) at times (…)."""
    t = time.unsqueeze(-1)
    return (1 - t) * noise + t * data


@dataclass(frozen=True, kw_only=True)
class FlowSampler(HeadSampler, tag="head_sampler.flow"):
    """From noise to a sample in ``steps`` runs of the net (of ``heun`` twice as many, less one).

    ``euler`` and ``heun`` solve the differential equation; ``sde`` (Euler-Maruyama) adds noise on the way, ``2 (1 - t)`` of variance
    a time, and goes the last ``last`` of the time without any (arXiv:2401.08740, section 2.3), by the velocity or, as the steps before,
    with the score (``final``).  ``shift`` above 1 spends more steps on noise (arXiv:2403.03206, equation 23).  ``temperature`` scales
    every noise, that at the start too.
    """

    steps: int = 50
    solver: Solver = "euler"
    last: float = 0.04
    shift: float = 1.0
    temperature: float = 1.0
    final: Literal["drift", "velocity"] = "drift"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.last < 1 or not 0 < self.shift < math.inf or not 0 <= self.temperature < math.inf:
            raise ConfigError(
                f"sample.head.steps={self.steps}, last={self.last}, shift={self.shift}, temperature={self.temperature}: at least one step, "
                "last in (0, 1), a positive shift, a temperature that is not negative"
            )

    def stops(self) -> list[float]:
        """The times at which the net runs, in float64; the last step goes on from the last of them."""
        end = 1 - self.last if self.solver == "sde" and self.steps > 1 else 1 - 1 / self.steps
        even = torch.linspace(0.0, end, self.steps, dtype=torch.float64, device="cpu").tolist()
        return [t / (self.shift - (self.shift - 1) * t) for t in even]

    def walk(self, x: Tensor, velocity: Callable[[Tensor, float], Tensor], noise: Callable[[int], Tensor]) -> Tensor:
        """A sample (…, C) from standard normal numbers x; ``noise(i)`` are those of step i (of ``sde`` alone)."""
        x, at = self.temperature * x, self.stops()
        if self.solver == "sde" and self.steps > 1:
            return self._stochastic(x, at, velocity, noise)
        for t, s in zip(at, [*at[1:], 1.0]):
            v = velocity(x, t)
            if self.solver == "heun" and s < 1:
                v = (v + velocity(x + (s - t) * v, s)) / 2
            x = x + (s - t) * v
        return x

    def _stochastic(
        self, x: Tensor, at: list[float], velocity: Callable[[Tensor, float], Tensor], noise: Callable[[int], Tensor]
    ) -> Tensor:
        for i, (t, s) in enumerate(pairwise(at)):
            x = x + (s - t) * drift(x, velocity(x, t), t) + self.temperature * math.sqrt(2 * (1 - t) * (s - t)) * noise(i)
        v = velocity(x, at[-1])
        return x + self.last * (v if self.final == "velocity" else drift(x, v, at[-1]))


def score(x: Tensor, v: Tensor, t: float | Tensor) -> Tensor:
    """Gradient of log p_t at x_t, from its velocity (arXiv:2401.08740, equation 9)."""
    return (t * v - x) / (1 - t)


def drift(x: Tensor, v: Tensor, t: float) -> Tensor:
    """Of the stochastic equation with diffusion ``sqrt(2 (1 - t))``: v + (1 - t) score."""
    return (1 + t) * v - x

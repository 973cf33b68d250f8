"""Gaussian diffusion in discrete times: noising, what a net predicts, and the way back (arXiv:2006.11239, arXiv:2102.09672).

Shapes: … rows and positions, C channels, T times.  ``signal`` is the share of signal in a variance of one (alpha bar); time 0 has almost
no noise, T - 1 almost no signal, and -1 stands for the data itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise, repeat
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.sampling.head_sampler import HeadSampler

TIMES = 1000

Schedule = Literal["cosine", "linear"]
Spacing = Literal["even", "stride"]


@cache
def signals(schedule: Schedule, device: torch.device) -> Tensor:
    """(T + 1,) float64: the signal of times 0 … T - 1, then, at index -1, that of the data, one."""
    if schedule == "cosine":  # cos^2 (arXiv:2102.09672, eq. 17), no step taking more than 0.999 of what is there
        f = [math.cos((t / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(TIMES + 1)]
        kept = [max(b / a, 0.001) for a, b in pairwise(f)]
    else:  # beta from 1e-4 to 0.02 (arXiv:2006.11239, section 4)
        kept = [1 - (1e-4 + (0.02 - 1e-4) * t / (TIMES - 1)) for t in range(TIMES)]
    return torch.tensor([*accumulate(kept, lambda a, b: a * b), 1.0], dtype=torch.float64, device="cpu").to(device)


def spaced(steps: int, spacing: Spacing = "even") -> list[int]:
    """That many times: ``even``, from the first to the last (arXiv:2102.09672, section 4), of one step the last one; or each n-th from the
    first on, ``stride`` (arXiv:2010.02502, appendix D.3).

    Raises:
        ConfigError: no stride has so many.
    """
    if spacing == "stride":
        found = next((list(range(0, TIMES, n)) for n in range(1, TIMES + 1) if len(range(0, TIMES, n)) == steps), None)
        if found is None:
            raise ConfigError(f"sample.head.steps={steps}: no stride through {TIMES} times has so many; take another, or spacing: even")
        return found
    if steps == 1:
        return [TIMES - 1]
    return [round(t) for t in accumulate(repeat((TIMES - 1) / (steps - 1), steps - 1), initial=0.0)]


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(HeadSampler, tag="head_sampler.diffusion"):
    """``steps`` of the reverse chain among all times, spaced as ``spaced`` has it; ``temperature`` scales the noise of each step (MAR,
    arXiv:2406.11838, section 3.4)."""

    steps: int = 50
    temperature: float = 1.0
    spacing: Added[Spacing] = "even"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= TIMES or self.temperature < 0:
            raise ConfigError(f"sample.head.steps={self.steps}, temperature={self.temperature}: 1 to {TIMES} steps, not negative")
        spaced(self.steps, self.spacing)


@dataclass(frozen=True)
class GaussianDiffusion:
    """A schedule of noise, and how the outputs (…, C or 2 C) of a net are read.

    ``predicts``: the noise, or ``v = a noise - b x_0`` (arXiv:2202.00512).  ``variance`` of a step back: that of q(x_s | x_t, x_0),
    ``large``, that is beta (arXiv:2006.11239, section 3.2), or ``learned``, for which the second half of the outputs interpolates
    between the two (arXiv:2102.09672, eq. 15).
    """

    schedule: Schedule = "cosine"
    predicts: Literal["eps", "v"] = "v"
    variance: Literal["fixed", "large", "learned"] = "fixed"

    def outputs(self, channels: int) -> int:
        """How many outputs a net has for these channels."""
        return 2 * channels if self.variance == "learned" else channels

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0)."""
        now = self.signal(t)
        return now.sqrt().float() * x0 + (1 - now).sqrt().float() * noise

    def loss(self, net: Callable[[Tensor, Tensor], Tensor], x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(…) the sum of ``losses`` of a net ``(x_t, t) -> outputs`` at these times (…)."""
        x_t = self.noised(x0, noise, t)
        return torch.stack(list(self.losses(net(x_t, t), x0, noise, x_t, t).values())).sum(0)

    def losses(self, output: Tensor, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
        """(…) means over channels: squared error ``mse``; with learned variances also ``vb``, the bound in bits that trains them alone."""
        predicted = output[..., : x0.shape[-1]]
        now = self.signal(t)
        target = noise if self.predicts == "eps" else now.sqrt().float() * noise - (1 - now).sqrt().float() * x0
        parts = {"mse": (predicted - target).square().mean(-1)}
        if self.variance == "learned":
            frozen = torch.cat([predicted.detach(), output[..., x0.shape[-1] :]], -1)
            parts["vb"] = self._bound(frozen, x0, x_t, t).mean(-1) / math.log(2)
        return parts

    def back(self, output: Tensor, x: Tensor, t: Tensor | int, s: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(x_s | x_t) for a time s closer to the data."""
        mean, small = self._posterior(self.clean(output, x, t), x, t, s)
        if self.variance == "fixed":
            return mean, small
        large = (1 - self.signal(t) / self.signal(s)).log().float()
        if self.variance == "large":
            return mean, large
        share = (output[..., x.shape[-1] :] + 1) / 2
        return mean, share * large + (1 - share) * small

    def chain(
        self,
        net: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        held: Callable[[Tensor, int], Tensor] = lambda x, t: x,
    ) -> Tensor:
        """Ancestral sampling from noise x (…, C) back through some ``times``; ``noise`` (…, C) is added after each but the last step, and
        ``held`` puts what is given in its place before each step."""
        for i in reversed(range(len(times))):
            x = held(x, times[i])
            t = torch.full(x.shape[:-1], times[i], device=x.device)
            x, log_variance = self.back(net(x, t), x, times[i], times[i - 1] if i else -1)
            if i:
                x = x + (0.5 * log_variance).exp() * noise(i)
        return x

    def clean(self, output: Tensor, x: Tensor, t: Tensor | int) -> Tensor:
        """The x_0 that outputs at x_t mean."""
        now, predicted = self.signal(t), output[..., : x.shape[-1]]
        if self.predicts == "v":
            return now.sqrt().float() * x - (1 - now).sqrt().float() * predicted
        return now.rsqrt().float() * x - (1 / now - 1).sqrt().float() * predicted

    def noise(self, output: Tensor, x: Tensor, t: Tensor | int) -> Tensor:
        """The noise that outputs at x_t mean."""
        now, predicted = self.signal(t), output[..., : x.shape[-1]]
        return predicted if self.predicts == "eps" else now.sqrt().float() * predicted + (1 - now).sqrt().float() * x

    def _posterior(self, x0: Tensor, x: Tensor, t: Tensor | int, s: Tensor | int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(x_s | x_t, x_0) (arXiv:2006.11239, eqs. 6 and 7)."""
        now, then = self.signal(t), self.signal(s)
        kept = now / then
        mean = (then.sqrt() * (1 - kept) / (1 - now)).float() * x0 + (kept.sqrt() * (1 - then) / (1 - now)).float() * x
        # Of the last step, which has no variance, that of the one before.
        late, early = (self.signal(u.clamp_min(k) if isinstance(u, Tensor) else max(u, k)) for u, k in ((t, 1), (s, 0)))
        return mean, ((1 - early) / (1 - late) * (1 - late / early)).log().float()

    def _bound(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """(…, C) nats: KL(q(x_s | x_t, x_0) || p(x_s | x_t)), or at time 0 -log p(x_0) of values that are 2 / 255 apart."""
        mean, log_variance = self.back(output, x, t, t - 1)
        true, small = self._posterior(x0, x, t, t - 1)
        kl = 0.5 * (log_variance - small - 1 + (small - log_variance).exp() + (true - mean).square() * (-log_variance).exp())
        return torch.where((t == 0).unsqueeze(-1), -_interval(x0, mean, (-0.5 * log_variance).exp()), kl)

    def signal(self, t: Tensor | int) -> Tensor:
        """Share of signal at times, float64: () on the CPU of one time, (…, 1) of times (…)."""
        if isinstance(t, int):
            return signals(self.schedule, torch.device("cpu"))[t]
        return signals(self.schedule, t.device)[t].unsqueeze(-1)


def _interval(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log-probability of x, within 1 / 255 and open beyond -1 and 1, under normal distributions whose standard deviation is 1 / scale."""
    below, above = (_cumulated(scale * (x - mean + edge)) for edge in (-1 / 255, 1 / 255))
    inside = (above - below).clamp_min(1e-12).log()
    inside = torch.where(x > 0.999, (1 - below).clamp_min(1e-12).log(), inside)
    return torch.where(x < -0.999, above.clamp_min(1e-12).log(), inside)


def _cumulated(x: Tensor) -> Tensor:
    """The normal distribution function as published implementations approximate it."""
    return 0.5 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())

"""How a generator is sampled, as values: schedules of guidance and temperature, and filters.

Guidance weights are those of classifier-free guidance as published (arXiv:2207.12598, eq. 6):
``logits = (1 + w) cond - w null``; w = 0 is off.  LlamaGen's and MAR's scale s is ``1 + w``; VAR's t is w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from models import config
from models.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Constant(config.Config):
    """The same value at every step."""

    value: float

    def at(self, progress: float) -> float:
        """Value when this share of the steps is done, 0 at the first and 1 at the last."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(config.Config):
    """From ``start`` at the first step to ``value`` at the last (VAR)."""

    value: float
    start: float = 0.0

    def at(self, progress: float) -> float:
        """Value when this share of the steps is done."""
        return self.start + (self.value - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class PowerCosine(config.Config):
    """``value (1 - cos(pi progress^power)) / 2`` (RAR, arXiv:2411.00776)."""

    value: float
    power: float = 1.0

    def at(self, progress: float) -> float:
        """Value when this share of the steps is done."""
        return self.value * (1 - math.cos(math.pi * progress**self.power)) / 2


Schedule = Constant | Linear | PowerCosine
SCHEDULES: dict[str, type[Constant] | type[Linear] | type[PowerCosine]] = {
    "constant": Constant,
    "linear": Linear,
    "power_cosine": PowerCosine,
}


@dataclass(frozen=True, kw_only=True)
class Sampler(config.Config):
    """Guidance and temperature over the steps, then top-k and top-p (0 and 1 keep all codes)."""

    guidance: Schedule = Constant(value=0.0)
    temperature: Schedule = Constant(value=1.0)
    top_k: int = 0
    top_p: float = 1.0

    def edited(
        self,
        guidance: float | None = None,
        guidance_schedule: Literal["constant", "linear", "power_cosine"] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Sampler:
        """A copy with the given settings changed; None keeps this sampler's own.

        Raises:
            ConfigError: a value out of range, naming it.
        """
        limits = {
            "guidance": (guidance, math.inf),
            "temperature": (temperature, math.inf),
            "top_k": (top_k, math.inf),
            "top_p": (top_p, 1),
        }
        for name, (value, most) in limits.items():
            if value is not None and not 0 <= value <= most:
                raise ConfigError(f"sample.{name}={value}: must be between 0 and {most}")
        schedule: Schedule = self.guidance
        if guidance_schedule is not None:
            schedule = SCHEDULES[guidance_schedule](value=schedule.value)
        if guidance is not None:
            schedule = replace(schedule, value=float(guidance))
        return replace(
            self,
            guidance=schedule,
            temperature=self.temperature if temperature is None else Constant(value=float(temperature)),
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
        )

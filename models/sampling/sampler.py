"""How a generator is sampled, as values: schedules of guidance and temperature, and filters.

Guidance weights are those of classifier-free guidance as published (arXiv:2207.12598, eq. 6):
``logits = (1 + w) cond - w null``; w = 0 is off.  LlamaGen's and MAR's scale s is ``1 + w``; VAR's t is w.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tokenloom.models.core import config
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.limits import Range
from tokenloom.models.parts.orders.sizes import CURVES, Along, Count, Shares, Sizes
from tokenloom.models.parts.orders.visits import Halton, InSequence, Listed, Outward, Shuffled, Visit
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.head_sampler import HeadSampler

Clock = Literal["steps", "begun", "done", "before", "after", "almost"]


@dataclass(frozen=True)
class Moment:
    """Where decoding is: step of ``steps``, and positions known before and after it of ``length``."""

    step: int
    steps: int
    before: int
    after: int
    length: int

    def share(self, clock: Clock) -> float:
        """Progress in [0, 1]: ``steps`` is 0 at the first and 1 at the last step, ``begun`` the share of steps before this one and
        ``done`` that with it, ``before`` and ``after`` the share of positions known before and after this step, ``almost`` the latter
        as if one were always left (MAR)."""
        match clock:
            case "steps":
                return self.step / max(1, self.steps - 1)
            case "begun":
                return self.step / self.steps
            case "done":
                return (self.step + 1) / self.steps
            case "before":
                return self.before / self.length
            case "after":
                return self.after / self.length
            case "almost":
                return min(self.after, self.length - 1) / self.length


@dataclass(frozen=True, kw_only=True)
class Schedule(config.Config, ABC):
    """A number over the steps; ``clock`` says what progress is."""

    limits: ClassVar = {"value": Range(-1e6, 1e6), "start": Range(-1e6, 1e6), "factors": Range(-1e6, 1e6)}

    value: float
    clock: Clock = "steps"

    @abstractmethod
    def on(self, moment: Moment) -> float:
        """Value at a moment of decoding."""


class ProgressSchedule(Schedule, ABC):
    """A function of progress."""

    @abstractmethod
    def at(self, progress: float) -> float:
        """Value at this progress, 0 at the start and 1 at the end."""

    def on(self, moment: Moment) -> float:
        return self.at(moment.share(self.clock))


@dataclass(frozen=True, kw_only=True)
class Constant(ProgressSchedule, tag="schedule.constant"):
    """The same value at every step."""

    def at(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(ProgressSchedule, tag="schedule.linear"):
    """From ``start`` at the first step to ``value`` at the last (VAR)."""

    start: float = 0.0

    def at(self, progress: float) -> float:
        return self.start + (self.value - self.start) * progress


@dataclass(frozen=True, kw_only=True)
class PowerCosine(ProgressSchedule, tag="schedule.power_cosine"):
    """``value (1 - cos(pi progress^power)) / 2`` (RAR, arXiv:2411.00776)."""

    power: float = 1.0

    def at(self, progress: float) -> float:
        return self.value * (1 - math.cos(math.pi * progress**self.power)) / 2


@dataclass(frozen=True, kw_only=True)
class Fading(ProgressSchedule, tag="schedule.fading"):
    """``value (1 - p) (last + span (1 - p))`` at progress p: to nothing at the end.

    With last 0.5 and span 0.8 it is the temperature of TiTok's generators (arXiv:2406.07550, released samplers): Gumbel noise of size
    ``value (1 - p)`` on logits that were divided by ``0.5 + 0.8 (1 - p)``.
    """

    last: float = 1.0
    span: float = 0.0
    clock: Clock = "done"

    def at(self, progress: float) -> float:
        return self.value * (1 - progress) * (self.last + self.span * (1 - progress))


@dataclass(frozen=True, kw_only=True)
class Interval(ProgressSchedule, tag="schedule.interval"):
    """The value while progress is in [``start``, ``end``], else zero (arXiv:2404.07724; LlamaGen's ``cfg_interval`` sets the end)."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(f"interval start={self.start}, end={self.end}: must be growing shares of the decoding, in [0, 1]")

    def at(self, progress: float) -> float:
        return self.value if self.start <= progress <= self.end else 0.0


@dataclass(frozen=True, kw_only=True)
class Table(Schedule, tag="schedule.table"):
    """``value`` times a factor of each step; the last factor holds for all steps after it (FlexVAR, Infinity)."""

    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.factors:
            raise ConfigError("schedule factors=[]: give at least one")

    def on(self, moment: Moment) -> float:
        return self.value * self.factors[min(moment.step, len(self.factors) - 1)]


#: Names of the schedules of guidance in run files and on the command line; the cosine is the power cosine of power one.
ScheduleName = Literal["constant", "linear", "cosine", "power_cosine", "interval"]
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": PowerCosine,
    "power_cosine": PowerCosine,
    "interval": Interval,
}
#: Sequences in which positions may be decoded, of orders that may start anywhere.
VISITS: dict[str, Visit] = {"raster": InSequence(), "random": Shuffled(), "halton": Halton(), "outward": Outward()}


@dataclass(frozen=True, kw_only=True)
class Sampler(config.Config, tag="sampler"):
    """Guidance and temperature over the steps, then top-k and top-p (0 and 1 keep all codes).

    ``sizes`` cuts the positions into steps, for orders that leave it open (None: as the order has it).  ``decoder`` is the way of
    decoding (None: the generator's own, which is group after group for most).  ``head`` holds settings that only the head knows
    (None: its defaults).  ``visit`` is the sequence of positions, of orders that may start anywhere (None: the order's own).
    """

    guidance: Schedule = Constant(value=0.0)
    temperature: Schedule = Constant(value=1.0)
    top_k: int = 0
    top_p: float = 1.0
    sizes: Sizes | None = None
    decoder: Added[Decoder | None] = None
    head: Added[HeadSampler | None] = None
    visit: Added[Visit | None] = None

    def edited(
        self,
        guidance: float | None = None,
        guidance_schedule: ScheduleName | None = None,
        guidance_interval: Sequence[float] | None = None,
        temperature: float | None = None,
        temperature_end: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | Sequence[int] | None = None,
        steps_along: str | None = None,
        head: HeadSampler | Mapping[str, Any] | None = None,
        decoder: str | Mapping[str, Any] | None = None,
        order: str | Sequence[int] | None = None,
    ) -> Sampler:
        """A copy with the given settings changed; None keeps this sampler's own.

        ``steps`` follow the order's own rule with another count, or are the numbers of positions of each step; ``steps_along`` names
        one of ``CURVES`` in place of that rule.  A schedule that is named again stays as it is, and another one
        keeps its clock; ``guidance_interval`` are the shares of the decoding between which there is guidance.  With
        ``temperature_end`` temperature goes in a line from ``temperature`` (1 if not given) to it.  ``order`` names a sequence of
        ``VISITS``, or lists positions.  ``decoder`` is a name, or a name with its fields, ``{"jacobi": {"window": 8}}``.

        Raises:
            ConfigError: a value out of range, naming it, or an unknown decoder.
        """
        limits = {
            "guidance": (guidance, math.inf),
            "temperature": (temperature, math.inf),
            "temperature_end": (temperature_end, math.inf),
            "top_k": (top_k, math.inf),
            "top_p": (top_p, 1),
        }
        for name, (value, most) in limits.items():
            if value is not None and not (0 <= value <= most and value < math.inf):
                raise ConfigError(f"sample.{name}={value}: must be a finite number between 0 and {most}")
        schedule, wanted = self.guidance, {decoder: {}} if isinstance(decoder, str) else decoder
        if guidance_interval is not None:
            if guidance_schedule not in (None, "interval"):
                raise ConfigError(f"sample.guidance_interval={list(guidance_interval)}: goes with guidance_schedule interval alone")
            if len(guidance_interval) != 2:
                raise ConfigError(f"sample.guidance_interval={list(guidance_interval)}: give two shares of the decoding, e.g. [0.1, 0.7]")
            start, end = guidance_interval
            schedule = Interval(value=schedule.value, start=start, end=end, clock="begun")
        elif guidance_schedule is not None and type(schedule) is not SCHEDULES[guidance_schedule]:
            schedule = SCHEDULES[guidance_schedule](value=schedule.value, clock=schedule.clock)
        if guidance_schedule == "cosine" and isinstance(schedule, PowerCosine):
            schedule = replace(schedule, power=1.0)
        if guidance is not None:
            schedule = replace(schedule, value=float(guidance))
        return replace(
            self,
            guidance=schedule,
            temperature=self._warmth(temperature, temperature_end),
            visit=self.visit if order is None else _visit(order),
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
            sizes=self._sizes(steps, steps_along),
            head=self.head if head is None else config.coerce(head, HeadSampler, "sample.head"),
            decoder=self.decoder if wanted is None else Decoder.parse(wanted, "sample.decoder"),
        )

    def _sizes(self, steps: int | Sequence[int] | None, along: str | None) -> Sizes | None:
        if along is not None:
            if along not in CURVES:
                raise ConfigError(f"sample.steps_along={along!r}: write one of {', '.join(CURVES)}")
            if isinstance(steps, Sequence):
                raise ConfigError(f"sample.steps_along={along}: goes with a number of steps, not with the sizes of each")
            return Along(curve=CURVES[along], count=None if steps is None else Count(count=steps).count)
        if isinstance(steps, Sequence):
            return Shares(shares=tuple(steps))
        return self.sizes if steps is None else Count(count=steps)

    def _warmth(self, start: float | None, end: float | None) -> Schedule:
        if end is not None:
            return Linear(start=1.0 if start is None else float(start), value=float(end))
        return self.temperature if start is None else Constant(value=float(start))


def _visit(order: str | Sequence[int]) -> Visit:
    if not isinstance(order, str):
        return Listed(places=tuple(order))
    if order not in VISITS:
        raise ConfigError(f"sample.order={order!r}: write one of {', '.join(VISITS)}, or list positions from 0 on")
    return VISITS[order]

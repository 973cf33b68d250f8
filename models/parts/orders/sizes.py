"""How many positions each decoding step takes, for orders that leave it open."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import NormalDist
from typing import Literal

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError


class Curve(config.Config, ABC):
    """What share is still masked when a share t of the steps is done: from one at 0 to zero at 1."""

    @abstractmethod
    def masked(self, t: float) -> float:
        """Share in [0, 1] at t in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Straight(Curve, tag="curve.linear"):
    """``1 - t``."""

    def masked(self, t: float) -> float:
        return 1 - t


@dataclass(frozen=True, kw_only=True)
class CosineCurve(Curve, tag="curve.cosine"):
    """``cos(pi t / 2)``: few positions at first, when little is known (MaskGIT, arXiv:2202.04200)."""

    def masked(self, t: float) -> float:
        return math.cos(math.pi / 2 * t)


@dataclass(frozen=True, kw_only=True)
class KeptCosine(Curve, tag="curve.kept_cosine"):
    """``1 - cos(pi u / 2)``, u = 1 - t being the share of the noise: what is kept falls as a cosine from data to noise, so that the first
    steps of the noise change little (multinomial diffusion, arXiv:2102.05379; VQ-DDM)."""

    def masked(self, t: float) -> float:
        return 1 - math.cos(math.pi / 2 * (1 - t))


@dataclass(frozen=True, kw_only=True)
class Arccos(Curve, tag="curve.arccos"):
    """``arccos(t) / (pi / 2)``: most positions in the last steps."""

    def masked(self, t: float) -> float:
        return math.acos(t) / (math.pi / 2)


@dataclass(frozen=True, kw_only=True)
class TruncatedNormal(Curve, tag="curve.truncated_normal"):
    """The quantile at ``1 - t`` of a normal around 1 of deviation ``std``, cut to [``low``, 1] (MAGE, arXiv:2211.09117; MAR)."""

    low: float = 0.7
    std: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.low < 1 or not 0 < self.std < math.inf:
            raise ConfigError(f"order.curve.low={self.low}, std={self.std}: low must be in [0, 1), std positive and finite")

    def masked(self, t: float) -> float:
        normal = NormalDist(1.0, self.std)
        below = normal.cdf(self.low)
        return min(1.0, max(self.low, normal.inv_cdf(below + (1 - t) * (0.5 - below))))


class Sizes(config.Config, ABC):
    """A rule that cuts a number of positions into successive groups."""

    @abstractmethod
    def cut(self, length: int) -> tuple[int, ...]:
        """Group sizes, all positive, summing to ``length``."""

    def over(self, own: Sizes) -> Sizes:
        """What becomes of an order's ``own`` rule when this one is requested."""
        return self


@dataclass(frozen=True, kw_only=True)
class Even(Sizes, tag="sizes.even"):
    """``size`` positions a step, the last step what is left."""

    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"order.size={self.size}: must be at least 1")

    def cut(self, length: int) -> tuple[int, ...]:
        whole, rest = divmod(length, self.size)
        return (self.size,) * whole + ((rest,) if rest else ())


@dataclass(frozen=True, kw_only=True)
class Steps(Sizes, tag="sizes.steps"):
    """``count`` steps along a curve; what is known after each is rounded ``up`` or ``down``, at least one more a step."""

    count: int
    curve: Curve = CosineCurve()
    rounding: Literal["up", "down"] = "up"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"sample.steps={self.count}: must be at least 1")

    def cut(self, length: int) -> tuple[int, ...]:
        count = min(self.count, length)
        sizes: list[int] = []
        for step in range(1, count + 1):
            masked, done = self.curve.masked(step / count), sum(sizes)
            known = length - math.floor(masked * length) if self.rounding == "up" else math.floor((1 - masked) * length)
            # At least one position now, and one for every step to come.
            sizes.append(max(1, min(length if step == count else known, length - (count - step)) - done))
        return tuple(sizes)


@dataclass(frozen=True, kw_only=True)
class Parts(Sizes, tag="sizes.parts"):
    """Successive group sizes for each number of positions that they sum to; any other number is one group.

    HMAR's published schedule is ``((1, 3), (1, 1, 2, 5))``: a grid of four positions in two steps, one of nine in four, all others whole.
    """

    parts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        sums = [sum(part) for part in self.parts]
        if any(size < 1 for part in self.parts for size in part) or len(set(sums)) < len(sums) or 0 in sums:
            raise ConfigError(
                f"sizes.parts={[list(part) for part in self.parts]}: give positive sizes, one cut for each number of positions"
            )

    def cut(self, length: int) -> tuple[int, ...]:
        return next((part for part in self.parts if sum(part) == length), (length,))


@dataclass(frozen=True, kw_only=True)
class Shares(Sizes, tag="sizes.shares"):
    """A step for each of ``shares``: so many positions, or these parts of them where they sum to another number."""

    shares: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares) < 1:
            raise ConfigError(f"sample.steps={list(self.shares)}: give the number of positions of each step, at least 1")

    def cut(self, length: int) -> tuple[int, ...]:
        done = [round(length * part / sum(self.shares)) for part in accumulate(self.shares)]
        return tuple(now - before for before, now in zip([0, *done], done) if now > before)


@dataclass(frozen=True, kw_only=True)
class Along(Sizes, tag="sizes.along"):
    """Steps along a ``curve``: ``count`` of them, or (None) as many as the order's own rule has."""

    curve: Curve
    count: int | None = None

    def cut(self, length: int) -> tuple[int, ...]:
        return Steps(count=self.count or length, curve=self.curve).cut(length)

    def over(self, own: Sizes) -> Sizes:
        count = self.count or getattr(own, "count", None)
        if count is None:
            raise ConfigError("sample.steps_along: this order has no number of steps of its own; give sample.steps too")
        return replace(own, count=count, curve=self.curve) if isinstance(own, Steps) else Steps(count=count, curve=self.curve)


@dataclass(frozen=True, kw_only=True)
class Count(Sizes, tag="sizes.count"):
    """``count`` steps by the order's own rule, along a cosine where that rule knows no number of steps."""

    count: int

    def __post_init__(self) -> None:
        Steps(count=self.count)  # refuses fewer than one

    def cut(self, length: int) -> tuple[int, ...]:
        return Steps(count=self.count).cut(length)

    def over(self, own: Sizes) -> Sizes:
        return replace(own, count=self.count) if isinstance(own, Steps) else Steps(count=self.count)


#: Curves along which the steps of a sample may be asked for.
CURVES: dict[str, Curve] = {"cosine": CosineCurve(), "linear": Straight(), "arccos": Arccos()}


def rule_of(own: Sizes, wanted: Sizes | None) -> Sizes:
    """An order's own rule, or what is requested in its place."""
    return own if wanted is None else wanted.over(own)

"""What each paper claims, and whether it held here: held, not, or undecided, with an interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

#: Share of qualities that a difference must leave outside.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measured:
    """One entry: its qualities (a distance, lower is better), one a seed, decoding passes, and training FLOPs an image."""

    quality: Sequence[float]
    passes: int
    flops: float


@dataclass(frozen=True)
class Spread:
    """The seeds' standard deviation of the logarithm of the quality, pooled over entries with several seeds."""

    deviation: float
    freedom: int

    @classmethod
    def of(cls, entries: Mapping[str, Measured]) -> Spread:
        """Pooled over what has more than one seed; without any, nothing is decided."""
        several = [np.log(one.quality) for one in entries.values() if len(one.quality) > 1]
        freedom = sum(len(x) - 1 for x in several)
        if not freedom:
            return cls(math.inf, 1)
        return cls(math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in several) / freedom), freedom)

    def interval(self, mine: Measured, other: Measured) -> tuple[float, float]:
        """Ratio of two qualities (below one: mine is better) within ``CONFIDENCE``, by Student's t on the logarithms."""
        middle = float(np.log(mine.quality).mean() - np.log(other.quality).mean())
        width = float(stdtrit(self.freedom, (1 + CONFIDENCE) / 2))
        width *= self.deviation * math.sqrt(1 / len(mine.quality) + 1 / len(other.quality))
        return math.exp(min(middle - width, 700)), math.exp(min(middle + width, 700))


@dataclass(frozen=True)
class Verdict:
    """``held``, ``not`` or ``undecided``, and why in a few words."""

    word: str
    why: str


@dataclass(frozen=True)
class Quality:
    """Quality against another entry: the ratio of distances must stay below ``ratio`` (1: better; 1.1: at most a tenth worse)."""

    than: str
    ratio: float = 1.0

    def judge(self, name: str, entries: Mapping[str, Measured], spread: Spread) -> Verdict:
        """Held where the whole interval of the ratio is below, not where it is above."""
        if self.than not in entries:
            return Verdict("undecided", f"{self.than} is not in this table")
        low, high = spread.interval(entries[name], entries[self.than])
        word = "held" if high < self.ratio else "not" if low > self.ratio else "undecided"
        return Verdict(word, f"distance {low:.2f} to {high:.2f} of {self.than}'s, asked below {self.ratio:g}")


@dataclass(frozen=True)
class Passes:
    """Decoding passes: exactly ``count``, or at most those of another entry over ``fewer``."""

    count: int | None = None
    than: str | None = None
    fewer: float = 1.0

    def judge(self, name: str, entries: Mapping[str, Measured], spread: Spread) -> Verdict:
        mine = entries[name].passes
        if self.count is not None:
            return Verdict("held" if mine == self.count else "not", f"{mine} passes")
        if self.than is None or self.than not in entries:
            return Verdict("undecided", f"{self.than} is not in this table")
        theirs = entries[self.than].passes
        return Verdict("held" if mine * self.fewer <= theirs else "not", f"{mine} passes, {self.than} {theirs}")


@dataclass(frozen=True)
class Cheaper:
    """FLOPs of training on an image at most ``share`` of another entry's."""

    than: str
    share: float = 1.0

    def judge(self, name: str, entries: Mapping[str, Measured], spread: Spread) -> Verdict:
        if self.than not in entries:
            return Verdict("undecided", f"{self.than} is not in this table")
        ratio = entries[name].flops / entries[self.than].flops
        return Verdict("held" if ratio <= self.share else "not", f"{ratio:.2f} of {self.than}'s FLOPs an image")


@dataclass(frozen=True)
class Shown:
    """A property that a number of this table cannot show: the test that does."""

    where: str

    def judge(self, name: str, entries: Mapping[str, Measured], spread: Spread) -> Verdict:
        return Verdict("held", f"by test, {self.where}")


Rule = Quality | Passes | Cheaper | Shown


@dataclass(frozen=True)
class Claim:
    """In words, and the rules that make it checkable; all must hold."""

    text: str
    rules: tuple[Rule, ...]

    def judge(self, name: str, entries: Mapping[str, Measured], spread: Spread) -> Verdict:
        """The worst of the rules: one that fails decides, then one that is open."""
        verdicts = [rule.judge(name, entries, spread) for rule in self.rules]
        words = [v.word for v in verdicts]
        word = "not" if "not" in words else "undecided" if "undecided" in words else "held"
        return Verdict(word, "; ".join(v.why for v in verdicts))

"""Times of two ways of doing the same thing: turn by turn in one process on one thread, ratio of medians.

Seconds are those of the processor, not of the clock, so that other processes of the machine count little.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Compared:
    """Seconds of ours and of the plain way, turn by turn."""

    ours: tuple[float, ...]
    plain: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the plain way over the median of ours: above one, ours is faster."""
        return statistics.median(self.plain) / statistics.median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest ratio of single turns."""
        turns = [p / o for o, p in zip(self.ours, self.plain)]
        return min(turns), max(turns)

    def row(self) -> dict[str, float | list[float]]:
        """What is kept of it."""
        return {
            "ratio": round(self.ratio, 3),
            "least_and_largest": [round(r, 3) for r in self.spread],
            "ours_ms": round(1000 * statistics.median(self.ours), 3),
            "plain_ms": round(1000 * statistics.median(self.plain), 3),
        }


def compare(ours: Callable[[], object], plain: Callable[[], object], turns: int, warm: int = 1, inner: int = 1) -> Compared:
    """Both after ``warm`` runs without a clock; ``inner`` runs are one turn of things that take microseconds."""
    for _ in range(warm):
        ours()
        plain()
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns):
        # a b b a: what drifts during a turn counts on both sides
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            began = time.process_time()
            for _ in range(inner):
                (ours, plain)[side]()
            seconds[side].append((time.process_time() - began) / inner)
    return Compared(tuple(seconds[0]), tuple(seconds[1]))


def machine() -> dict[str, str]:
    """Processor and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": name, "python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}

"""What a server of many has done, in numbers: requests by their end, tokens, passes of the net, how long answers took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Answers whose times the percentiles are of: the newest.
KEPT = 1000


@dataclass
class Counts:
    """Sums since the start; ``refused``: the queue was full; ``left``: the client had gone."""

    tokens: int = 0
    done: int = 0
    samples: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    begun: float = field(default_factory=time.monotonic)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def answered(self, seconds: float, samples: int) -> None:
        """A request was answered."""
        self.done += 1
        self.samples += samples
        self.seconds.append(seconds)

    def numbers(self, tickets: Collection[Any], engine: Any) -> dict[str, float]:
        """All of them; times in seconds, percentiles over the newest answers (0 before the first one)."""
        up = time.monotonic() - self.begun
        percentiles = np.percentile(list(self.seconds) or [0.0], [50, 95, 99])
        return {
            "requests_answered": self.done,
            "requests_refused": self.refused,
            "requests_failed": self.failed,
            "requests_left": self.left,
            "requests_open": len(tickets),
            "samples": self.samples,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / up,
            "passes": engine.passes,
            "running": len(engine.running),
            "seconds_up": up,
            **{f"seconds_p{p}": float(value) for p, value in zip((50, 95, 99), percentiles)},
        }

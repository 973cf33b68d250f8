"""What decoding has done, for people and benchmarks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """What a session has done: steps, calls of nets by role, slots that went through them a row, tokens a row, seconds since opening.

    Tokens may be numbers on the device; reading ``tokens`` waits for them.
    """

    steps: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    slots: int = 0
    committed: list[int | Tensor] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def call(self, slots: int, role: str = "net") -> None:
        """Count a call of a net over so many slots a row."""
        self.calls[role] = self.calls.get(role, 0) + 1
        self.slots += slots

    def step(self, tokens: int | Tensor) -> None:
        """Count a step that made so many tokens permanent: of each row, or (B,)."""
        self.steps += 1
        self.committed.append(tokens)
        self.seconds = time.perf_counter() - self.begun

    def numbers(self) -> dict[str, float]:
        """What people are shown: ``net_calls`` of each sample (``draft_calls`` of a draft model's), and ``tokens_per_call`` of the net."""
        calls = {f"{role}_calls": float(count) for role, count in self.calls.items()}
        return calls | {"tokens_per_call": self.tokens / max(1.0, calls.get("net_calls", 0.0))}

    @property
    def tokens(self) -> float:
        """Tokens that were made permanent, the mean over rows."""
        return float(sum(t if isinstance(t, int) else t.float().mean() for t in self.committed))

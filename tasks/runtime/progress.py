"""How a step reports its progress, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

#: ``report(stage, done, total, numbers)``: called often, must be cheap and must not raise.
Report = Callable[[str, int, int, dict[str, float]], None]


def silent(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    """A report that shows nothing."""

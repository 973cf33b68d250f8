"""What the validation loss says of a finished training: where it was best, whether the model over-fitted, which weights were kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Share by which the last validation loss must be worse than the best one to be called over-fitting.
WORSE = 0.01


def verdict(metrics: Mapping[str, Any]) -> str:
    """One sentence for people; empty where nothing was validated, or the last step is the best."""
    best, at, last, steps = (metrics.get(name) for name in ("best_validation_loss", "best_step", "validation_loss", "steps"))
    if best is None or at is None or last is None or steps is None or at >= steps or last <= best:
        return ""
    found = f"validation loss is best at step {at:,} of {steps:,}: {best:.4g}, and {last:.4g} at the end"
    if last > best + WORSE * abs(best):
        found += " (over-fitting)"
    if metrics.get("kept_step", steps) == at:
        return f"{found}; the weights of step {at:,} were kept (train.keep: best)"
    return f"{found}; the last weights were kept (train.keep: best would take those of step {at:,})"

"""The gate of the alias ``champion``: floors for the first one, then never worse than the present one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation.report import all_meanings, meaning, number
from tokenloom.tasks.runtime.errors import StepError


@dataclass(frozen=True)
class Decision:
    """Whether a challenger becomes champion, and why, for people."""

    promoted: bool
    reason: str


def measured_by_all() -> dict[str, tuple[str, ...]]:
    """What each entry of ``evaluate.metrics`` measures, of all kinds of signals; the last ones are always there."""
    found: dict[str, tuple[str, ...]] = {"": ("parameters",)}
    for modality in modalities.kinds().values():
        for group, names in modality.measured.items():
            found[group] = (*found.get(group, ()), *names)
    return found


def check_names(floor: Mapping[str, float], gate: str, measured: Sequence[str] | None = None) -> None:
    """Refuse metrics that no evaluation makes, or (``measured`` is ``evaluate.metrics``) that this one does not, before any work.

    Raises:
        ConfigError: naming the metric and those that there are.
    """
    for where, name in [*((f"register.floor.{n}", n) for n in floor), ("register.gate", gate)]:
        if not meaning(name)[1] and not meaning(f"{name}_")[1]:
            known = ", ".join(dict.fromkeys(prefix.rstrip("_") for prefix, _, _ in all_meanings()))
            raise ConfigError(f"{where}: no metric is named {name!r}; there are: {known}")
        makers = [group for group, names in measured_by_all().items() if any(name == n or name.startswith(f"{n}_") for n in names)]
        if measured is not None and makers and not set(makers) & {*measured, ""}:
            raise ConfigError(f"{where}: {name!r} is not measured; add {makers[0]!r} to evaluate.metrics")


def value_of(metrics: Mapping[str, Any], name: str) -> tuple[str, float]:
    """The full name and value of a metric; ``fd`` means ``fd_classifier``, or ``fid``, where that is what was measured.

    Raises:
        StepError: the evaluation does not have it.
    """
    fitting = [key for key in metrics if key == name] or sorted(
        key for key in metrics if key.startswith(f"{name}_") and not key.endswith(("_deviation", "_ceiling"))
    )
    fitting = fitting or [key for key in measured_by_all().get(name, ()) if key in metrics]
    if not fitting:
        raise StepError(f"metric {name!r} was not measured; add what makes it to evaluate.metrics. There are: {', '.join(sorted(metrics))}")
    return fitting[0], float(metrics[fitting[0]])


def lower_is_better(name: str) -> bool:
    """Whether less of a metric is better."""
    return meaning(name)[0] == "lower"


def floors(metrics: Mapping[str, Any], floor: Mapping[str, float]) -> Decision:
    """The first champion: every floor holds (for a metric of which less is better it is a ceiling)."""
    broken = []
    for name, limit in floor.items():
        key, value = value_of(metrics, name)
        lower = lower_is_better(key)
        if value > limit if lower else value < limit:
            broken.append(f"{key} is {number(value)}, {'at most' if lower else 'at least'} {number(limit)} is required")
    if broken:
        return Decision(False, "; ".join(broken))
    return Decision(True, "the first champion" + ("; all floors hold" if floor else ""))


def against(metrics: Mapping[str, Any], champion: Mapping[str, Any], gate: str) -> Decision:
    """A later one: not worse than the champion on the gate's metric, both under one protocol."""
    key, value = value_of(metrics, gate)
    if key not in champion:
        return Decision(False, f"the champion's evaluation has no {key}")
    present = float(champion[key])
    worse = value > present if lower_is_better(key) else value < present
    return Decision(not worse, f"{key} is {number(value)}, the champion's is {number(present)}")

"""What a sweep tries out and what it looks for: ranges and choices among the edits of a run, and the metric that decides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation.report import meaning


@dataclass(frozen=True)
class Axis:
    """One setting that is tried out: a range of numbers, or values to choose from."""

    path: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    def ask(self, trial: Any) -> str:
        """A value that Optuna proposes, as ``--set`` takes it."""
        if self.choices:
            return str(trial.suggest_categorical(self.path, list(self.choices)))
        if self.whole:
            return str(trial.suggest_int(self.path, int(self.low), int(self.high), log=self.log))
        return f"{trial.suggest_float(self.path, self.low, self.high, log=self.log):.6g}"


def axis_of(text: str) -> Axis | None:
    """The axis that ``PATH=LOW..HIGH``, ``PATH=LOW..HIGH:log`` or ``PATH=A|B|C`` says; None for a plain edit.

    Raises:
        ConfigError: a range that is none.
    """
    path, _, value = text.partition("=")
    path = path.strip()
    if ".." not in value:
        choices = tuple(part.strip() for part in value.split("|"))
        return Axis(path, choices=choices) if len(choices) > 1 and all(choices) else None
    match = re.fullmatch(r"\s*(\S+?)\.\.(\S+?)(:log)?\s*", value)
    try:
        low, high = (float(part) for part in (match[1], match[2])) if match else (1.0, 0.0)
    except ValueError:
        return None  # a path with dots, say
    log = bool(match and match[3])
    if not low < high or (log and low <= 0):
        raise ConfigError(f"--set {text}: a range is LOW..HIGH with LOW < HIGH, and above 0 with :log, e.g. 1e-4..1e-2:log")
    whole = all(re.fullmatch(r"[+-]?\d+", part) for part in (match[1], match[2])) if match else False
    return Axis(path, low, high, log, whole)


def axes_of(sets: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Plain edits, and the axes among them.

    Raises:
        ConfigError: no axis, or one path twice.
    """
    axes = [axis for text in sets if (axis := axis_of(text)) is not None]
    if not axes:
        raise ConfigError("nothing to try out: give a range, --set PATH=LOW..HIGH[:log], or values, --set 'PATH=A|B|C'")
    if len({axis.path for axis in axes}) < len(axes):
        raise ConfigError("--set: one path stands twice among the ranges")
    return [text for text in sets if axis_of(text) is None], axes


@dataclass(frozen=True)
class Goal:
    """What a sweep looks for: the first of these metrics that an evaluation has, and which way is better."""

    names: tuple[str, ...]
    higher: bool

    def value(self, metrics: Mapping[str, Any]) -> tuple[str, float] | None:
        """Name and value of the metric among those of an evaluation; None where it is not there."""
        for wanted in self.names:
            for name, value in metrics.items():
                if (name.startswith(wanted) if wanted.endswith("_") else name == wanted) and isinstance(value, (int, float)):
                    return name, float(value)
        return None


def goal_of(config: RunConfig, metric: str | None) -> Goal:
    """The goal of a metric's name, else the one by which a leaderboard ranks this kind of data.

    Raises:
        ConfigError: a metric that is not known, or of which no way is better.
    """
    names = (metric,) if metric else tuple(modalities.kind(config.data.kind).comparison.headline)
    better = meaning(names[0])[0] or meaning(f"{names[0]}_")[0]
    if better not in ("higher", "lower"):
        raise ConfigError(
            f"--metric {names[0]}: give a metric of evaluations of which more or less is better, as `tokenloom show` has them"
        )
    return Goal(names, better == "higher")

"""Which numbers of an artifact a person reads first, and how: with units, the ones that matter before the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: How many are shown where no more are asked for.
FIRST = 10
#: Of a training, in order.
TRAINED = (
    "parameters", "steps", "validation_loss", "best_validation_loss", "best_step", "kept_step", "loss",
    "images_per_second", "tokens_per_second", "mfu", "train_seconds", "peak_memory_bytes", "workers", "waiting_for_data",
)  # fmt: skip
_UNITS = (
    ("_per_second", "/s"),
    ("_seconds", " s"),
    ("seconds", " s"),
    ("psnr", " dB"),
    ("detail", " dB"),
    ("bits_per_image", " bits"),
    ("bits_per_dim", " bits"),
)


def split(metrics: Mapping[str, Any], order: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the numbers that come first, at most ``FIRST``, and of the rest.

    Args:
        metrics: of an artifact.
        order: names, or beginnings that end in ``_``, those that matter most first.
    """
    there = [name for name, value in metrics.items() if isinstance(value, (int, float, str))]
    ranked = [
        name for wanted in order for name in there if (name.startswith(wanted) if wanted.endswith("_") else name == wanted)
    ]  # a name may be met twice: its first place counts
    ranked = [name for name in dict.fromkeys(ranked) if not name.endswith("_deviation")]
    rest = [name for name in there if name not in ranked]
    if not ranked:
        return there[:FIRST], there[FIRST:]
    return ranked[:FIRST], ranked[FIRST:] + rest


def written(name: str, value: Any) -> str:
    """A number with its name and unit: ``train seconds 12.3 s``, ``images 410/s``, ``peak memory 1.2 GiB``."""
    from tokenloom.tasks.costs.took import size_of
    from tokenloom.tasks.evaluation.report import number

    label = name.replace("/", " ").replace("_", " ")
    if isinstance(value, str):
        return f"{label} {value}"
    if name.endswith("_bytes"):
        return f"{label.removesuffix(' bytes')} {size_of(int(value))}"
    for end, unit in _UNITS:
        if name.endswith(end):
            return f"{label.removesuffix(' per second').removesuffix(' seconds')} {number(value)}{unit}"
    return f"{label} {number(value)}"

"""What numbers a config may hold: ranges by the name of the field or argument, checked before anything is built.

A field is called by what it counts, and the same name has the same range everywhere; a config type says where one of its fields has
another one (``limits``).  Checks that relate several fields stay with their types.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from tokenloom.models.core.marks import ConfigError


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included unless ``above`` excludes ``low``."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:.15g} to {self.high:.15g}"


#: Of a number whose name has no range of its own.
INTEGER, FLOAT = Range(0, 1 << 16), Range(0, 1e6)
_SIZE, _COUNT, _MANY, _SHARE, _POSITIVE = Range(1, 1 << 15), Range(1, 512), Range(0, 1 << 20), Range(0, 1), Range(0, 1e6, above=True)
RANGES: dict[str, Range] = {
    **dict.fromkeys(("width", "widths", "dim", "inner_width", "norm_groups", "multiple_of"), _SIZE),
    **dict.fromkeys(
        ("depth", "depths", "layers", "blocks", "encoder_blocks", "decoder_blocks", "fine_depth", "semantic_depth"), Range(0, 512)
    ),
    **dict.fromkeys(("heads", "inner_heads", "branches", "multipliers", "expand", "taps", "kernel", "groups"), _COUNT),
    **dict.fromkeys(("patch", "latent_patch", "side", "strip", "chunk", "sides", "rounds", "orders"), Range(0, 4096)),
    **dict.fromkeys(("codes", "classes", "labels", "bins", "top_k"), _MANY),
    **dict.fromkeys(("scales", "steps", "trained"), Range(0, 4096)),
    "share": _COUNT,
    "channels": Range(0, 1 << 15),  # 0: as many as the tokens have, where a type allows it
    "quant_kernel": Range(0, 512),  # 0: there is none
    "bits": Range(1, 128),
    "levels": Range(1, 1 << 16),
    "quality": Range(1, 100),
    "seed": Range(0, (1 << 63) - 1),
    **dict.fromkeys(("adversarial_start",), Range(0, 1 << 31)),
    **dict.fromkeys(("dropout", "drop", "label_dropout", "condition_dropout", "decay", "decay_mean", "top_p", "stage2", "whole"), _SHARE),
    **dict.fromkeys(("none", "middle", "until", "threshold", "flips", "strength"), _SHARE),
    "drop_path": Range(0, 0.99),
    **dict.fromkeys(("eps", "look_eps", "base", "mlp_ratio"), _POSITIVE),
}


def check_number(name: str, value: Any, where: str, limits: Mapping[str, Range] | None = None) -> None:
    """Refuse a number, or one in a tuple, that is out of the range of its name.

    Raises:
        ConfigError: with ``where`` it was given, the value and the range.
    """
    if isinstance(value, (tuple, list)):
        for item in value:
            check_number(name, item, where, limits)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        allowed = (limits or {}).get(name) or RANGES.get(name) or (INTEGER if isinstance(value, int) else FLOAT)
        # An int is compared as it is: no float holds a huge one.
        if (isinstance(value, float) and not math.isfinite(value)) or value not in allowed:
            raise ConfigError(f"{where}={shortened(value)}: must be {allowed}")


def shortened(value: Any, most: int = 60) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def check_fields(config: Any) -> None:
    """Refuse a config with a number that is out of its range.

    Raises:
        ConfigError: naming the field and the tag of the config.
    """
    limits: dict[str, Range] = {}
    for kind in reversed(type(config).__mro__):
        limits.update(vars(kind).get("limits", {}))
    for field in dataclasses.fields(config):
        try:
            check_number(field.name, getattr(config, field.name), field.name, limits)
        except ConfigError as error:
            raise ConfigError(f"{error} (of {config.tag or type(config).__qualname__})") from error


def after_ranges(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A type's own checks, made once its numbers are known to be in range."""

    @functools.wraps(check)
    def checks(self: Any) -> None:
        check_fields(self)
        check(self)

    return checks

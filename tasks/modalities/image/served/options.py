"""The parameters of a request to a served model of images: those of its sampler, each with its own setting as the default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.orders.sizes import CURVES
from tokenloom.models.sampling.sampler import SCHEDULES, VISITS
from tokenloom.tasks.serving.predict import Pair


def parameters(pair: Pair) -> dict[str, tuple[str, Any]]:
    """Name to MLflow's type and default; what is at its default is as the model has it."""
    own = pair.sampler
    return {
        "seed": ("long", 0),
        "guidance": ("double", float(own.guidance.value)),
        "guidance_schedule": ("string", ""),
        "guidance_interval": ("string", ""),
        "temperature": ("double", float(own.temperature.value)),
        "temperature_end": ("double", -1.0),
        "top_k": ("long", own.top_k),
        "top_p": ("double", own.top_p),
        "steps": ("long", 0),
        "step_sizes": ("string", ""),
        "steps_along": ("string", ""),
        "order": ("string", ""),
        "decoder": ("string", ""),
        "head": ("string", ""),
        "inpaint": ("string", ""),
        "mask": ("string", ""),
        "size": ("string", ""),
        "prefix": ("long", 0),
    }


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "double": ((int, float, np.floating, np.integer), "a number"),
    "long": ((int, np.integer), "a whole number"),
    "string": ((str,), "text"),
}
#: What is no setting of the sampler.
OTHERS = ("seed", "inpaint", "mask", "size", "prefix")


#: What a card says of them.
INTERFACE = (
    "parameters `seed`, `guidance`, `guidance_schedule` ({}), `guidance_interval` (two shares, `0.1,0.7`), `temperature`, "
    "`temperature_end`, `top_k`, `top_p`, `steps`, `step_sizes` (positions of each step, `1,3,12`), `steps_along` ({}), `order` ({}, or "
    "positions, `27,28,35`), `decoder` and `head` (a name, or JSON as in a run file); each is the "
    "model's own where it is left out; `inpaint` and `mask` (PNG as base64 text): an image, drawn anew where the mask is white; `size`: "
    "rows and columns of the images, `512x256`; "
    "`prefix`: so many tokens are drawn and decoded alone"
).format(", ".join(SCHEDULES), ", ".join(CURVES), ", ".join(VISITS))


def changes(pair: Pair, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of ``Pair.edited`` that a request asks for.

    Raises:
        ConfigError: an unknown parameter, or a value that cannot be read, naming it.
    """
    known, found = parameters(pair), dict[str, Any]()
    if unknown := [name for name in given if name not in known]:
        raise ConfigError(f"parameter {unknown[0]!r}: this model takes {', '.join(known)}")
    for name, value in given.items():
        kinds, words = _KINDS[known[name][0]]
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ConfigError(f"{name}={value!r}: write {words}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ConfigError(
                f"{name}={value:.3e}: write {words} of at most 63 bits"
                if abs(value) < 10**300
                else f"{name}: write {words} of at most 63 bits"
            )
        # Equal to the default means untouched: a schedule must not become a constant.
        if name not in OTHERS and value != known[name][1]:
            found["steps" if name == "step_sizes" else name] = _read(name, value)
    return found


def size_of(given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that a request asks for; raises ``ConfigError`` for what are none."""
    value = str(given.get("size", ""))
    if not value:
        return None
    sides = value.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"size={value!r}: write rows and columns, 512x256, or one number for a square")
    return int(sides[0]), int(sides[-1])


def _read(name: str, value: Any) -> Any:
    """A parameter as ``Sampler.edited`` takes it."""
    choices = {"guidance_schedule": tuple(SCHEDULES), "steps_along": tuple(CURVES)}.get(name)
    if choices is not None and value not in choices:
        raise ConfigError(f"{name}={value!r}: write one of {', '.join(choices)}")
    try:
        if name == "guidance_interval":
            return [float(part) for part in value.split(",")]
        if name == "step_sizes" or (name == "order" and value not in VISITS):
            return [int(part) for part in value.split(",")]
        if name in ("decoder", "head") and value.lstrip().startswith("{"):
            return json.loads(value)
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"{name}={value!r}: cannot be read: {error}") from error
    return {value: {}} if name == "head" else value

"""Values of an axis that a run file names: ``{NAME: {field: value}}`` for the config type with the tag ``AXIS.NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core.config import Config, ConfigError, from_fields, tags


def named(axis: str) -> dict[str, type[Config]]:
    """Every config type of an axis by the name that a run file gives it: its tag without ``AXIS.``."""
    start = f"{axis}."
    return {tag.removeprefix(start): kind for tag, kind in sorted(tags().items()) if tag.startswith(start)}


def parse_named(axis: str, value: Mapping[str, Any], where: str) -> Config:
    """The value of an axis as a run file has it, e.g. ``{diffusion: {width: 256}}``.

    Raises:
        ConfigError: another name, an unknown or missing field, or a value of the wrong type.
    """
    known = named(axis)
    if len(value) != 1 or next(iter(value)) not in known:
        raise ConfigError(f"{where}: {dict(value)!r}: write one of {', '.join(known)} with its fields, e.g. {{{next(iter(known))}: {{}}}}")
    (name, given), *_ = value.items()
    return from_fields(known[name], given, f"{where}.{name}")

"""Values of an axis that a run file names: ``{NAME: {field: value}}`` for the config type with the tag ``AXIS.NAME``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast, get_type_hints

from tokenloom.models.core.config import Config, ConfigError, coerce, tags


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


def from_fields(kind: type[Config], given: Any, where: str) -> Config:
    """A config of this type with these fields, as a run file has them; None (nothing written) is none.

    Raises:
        ConfigError: no mapping, an unknown or missing field, or a value of the wrong type.
    """
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"{where}: {given!r} is not a mapping of fields, e.g. {{field: value}}")
    hints = {f.name: get_type_hints(kind)[f.name] for f in dataclasses.fields(cast(Any, kind))}
    if unknown := [key for key in given or {} if key not in hints]:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; fields here: {', '.join(hints) or 'none'}")
    try:
        return kind(**{key: coerce(item, hints[key], f"{where}.{key}") for key, item in (given or {}).items()})
    except TypeError as error:  # a field without a default
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}") from error

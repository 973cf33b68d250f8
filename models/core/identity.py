"""The identity part of settings: what their fingerprint covers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from tokenloom.models.core.config import Config, canonical, enters


def identity_of(settings: Any) -> dict[str, Any]:
    """The identity part of a marked settings dataclass, as plain data.

    Raises:
        ConfigError: if a field carries no ``Identity``/``Execution`` mark.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    result: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if enters(hints[field.name], f"{type(settings).__name__}.{field.name}", value, default):
            several = isinstance(value, Mapping)
            result[field.name] = {k: _identity(v) for k, v in sorted(value.items())} if several else _identity(value)
    return result


def _identity(value: Any) -> Any:
    marked = dataclasses.is_dataclass(value) and not isinstance(value, Config)
    return identity_of(value) if marked else canonical(value)

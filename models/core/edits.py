"""Edits of a config by dotted paths: what ``set`` of a run file does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from tokenloom.models.core.config import ConfigError, coerce, shortened

T = TypeVar("T")


def override(config: T, changes: Mapping[str, Any], where: str = "set") -> T:
    """A copy of a config with dotted paths replaced, e.g. ``{"net.dropout": 0.1}``; all of them at once, the whole before its fields.

    A value that is a config is written by its name, ``{"net": {"vit": {"patch": 8, …}}}``, or by its fields where only one type can be.

    Raises:
        ConfigError: unknown path (with the fields that exist) or a value of the wrong type.
    """
    return _edited(config, [(path.split("."), value, f"{where}.{path}") for path, value in changes.items()])


def _edited(config: Any, changes: list[tuple[list[str], Any, str]]) -> Any:
    """Changes of fields that depend on each other are made together, so that no order of them is refused."""
    if not changes:
        return config
    names = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    new: dict[str, Any] = {}
    for (head, *rest), value, where in sorted(changes, key=lambda change: len(change[0])):
        if head not in names:
            known = ", ".join(names) or f"none, it is the value {config!r}"
            raise ConfigError(f"{where}: unknown field {head!r}; fields here: {known}")
        if not rest:
            new[head] = coerce(value, get_type_hints(type(config))[head], where)
    for head in dict.fromkeys(path[0] for path, _, _ in changes):
        inner = [(path[1:], value, where) for path, value, where in changes if path[0] == head and len(path) > 1]
        if inner:
            new[head] = _edited(new.get(head, getattr(config, head)), inner)
    try:
        return dataclasses.replace(config, **new)
    except ConfigError as error:
        given = ", ".join(f"{where}={shortened(value)}" for _, value, where in changes)
        raise ConfigError(f"{given}: {error}") from error

"""Frozen configs of every part, and the marks that decide what a fingerprint sees.

A part nests ``Config`` (a frozen, keyword-only dataclass) and builds itself from it.  A recipe is a
function that returns one full config; ``override`` edits it by dotted path, ``to_dict`` is its
canonical form, from which fingerprints are made.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Mark:
    """Says whether a field belongs to an artifact's identity or only to how it is executed.

    A ``sparse`` field does not enter the fingerprint while it has its default value.
    """

    role: Literal["identity", "execution"]
    sparse: bool = False


#: The value shapes the result: it enters the fingerprint.
Identity = Annotated[T, Mark("identity")]
#: The same of a field that came later: its default stands for what was always done, so that older fingerprints hold.
Added = Annotated[T, Mark("identity", sparse=True)]
#: The value says where, how fast or how often reported: it never enters the fingerprint.
Execution = Annotated[T, Mark("execution")]


class ConfigError(ValueError):
    """A setting that cannot be used: names the field, the value and what to do."""


class Config:
    """Base of all part configs; every subclass must be a frozen keyword-only dataclass.

    Subclasses are written as ``@dataclass(frozen=True, kw_only=True) class Config(models.config.Config)``
    nested in the class that they build; ``build(**given)`` then constructs that class.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Of a whole model: roles of the trained models that it depends on, e.g. ``features``; a tokenizer's base is ``tokenizer``."""
        return ()

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Config:
        """A config of this axis from its plain form in a run file, ``{name: {field: value}}``, where the axis has such names.

        Raises:
            ConfigError: it has none, an unknown name or field, or a value of the wrong type.
        """
        raise ConfigError(f"{where}: {dict(value)!r} is not a value that can be written here; edit its fields, e.g. {where}.FIELD")

    def to_dict(self) -> dict[str, Any]:
        """Canonical plain form: ``{"type": "module.Class", field: value, …}`` recursively."""
        return typing.cast(dict[str, Any], canonical(self))


def type_name(config: object) -> str:
    """Stable short name of a config's type: module below ``models`` and qualified class name."""
    cls = type(config)
    return f"{cls.__module__.removeprefix('models.')}.{cls.__qualname__}"


def canonical(value: Any) -> Any:
    """Plain JSON form of a value that has exactly one.

    Raises:
        ConfigError: for a value without a stable serialization (callables, arrays, arbitrary objects, NaN).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type_name(value), **fields}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{value!r} has no stable serialization: use a finite number")
        return value
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"mapping keys must be strings to be serialized, got {list(value)!r}")
        return {key: canonical(value[key]) for key in sorted(value)}
    raise ConfigError(f"{type(value).__name__} {value!r} has no stable serialization")


def identity_of(settings: Any) -> dict[str, Any]:
    """The identity part of a marked settings dataclass, as plain data.

    Raises:
        ConfigError: if a field carries no ``Identity``/``Execution`` mark.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    result: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if enters(hints[field.name], f"{type(settings).__name__}.{field.name}", value, field.default):
            marked = dataclasses.is_dataclass(value) and not isinstance(value, Config)
            result[field.name] = identity_of(value) if marked else canonical(value)
    return result


def role_of(hint: Any, where: str) -> Literal["identity", "execution"]:
    """What one annotated field belongs to; an unmarked field is an error."""
    return _mark(hint, where).role


def enters(hint: Any, where: str, value: Any, default: Any) -> bool:
    """Whether an annotated field with this value is part of a fingerprint; an unmarked field is an error."""
    mark = _mark(hint, where)
    return mark.role == "identity" and not (mark.sparse and value == default)


def _mark(hint: Any, where: str) -> Mark:
    for extra in getattr(hint, "__metadata__", ()):
        if isinstance(extra, Mark):
            return extra
    raise ConfigError(f"{where} is marked neither Identity nor Execution")


def override(config: T, changes: Mapping[str, Any], where: str = "set") -> T:
    """A copy of a config with dotted paths replaced, e.g. ``{"net.dropout": 0.1}``.

    Raises:
        ConfigError: unknown path (with the fields that exist) or a value of the wrong type.
    """
    for path, value in changes.items():
        config = _replace(config, path.split("."), value, f"{where}.{path}")
    return config


def _replace(config: Any, path: list[str], value: Any, where: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    head, *rest = path
    if head not in names:
        known = ", ".join(names) or f"none, it is the value {config!r}"
        raise ConfigError(f"{where}: unknown field {head!r}; fields here: {known}")
    if rest:
        return dataclasses.replace(config, **{head: _replace(getattr(config, head), rest, value, where)})
    hint = get_type_hints(type(config))[head]
    return dataclasses.replace(config, **{head: coerce(value, hint, where)})


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Check a plain value (from YAML) against a type hint; ints become floats, lists tuples.

    Raises:
        ConfigError: naming the field, the value and the type that is wanted.
    """
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return coerce(value, option, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        inner = args[0] if args else Any
        if (len(args) == 2 and args[1] is Ellipsis) or origin is list:
            return origin(coerce(item, inner, f"{where}[{i}]") for i, item in enumerate(value))
        if len(args) == len(value):
            return tuple(coerce(item, a, f"{where}[{i}]") for i, (item, a) in enumerate(zip(value, args)))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (type(None), None):
        if value is None:
            return None
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    elif isinstance(hint, type) and issubclass(hint, Config) and isinstance(value, Mapping):
        return hint.parse(value, where)
    wanted = getattr(hint, "__name__", None) or str(hint)
    raise ConfigError(f"{where}: {value!r} is not a valid {wanted}")

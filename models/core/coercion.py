"""Plain values (from YAML or JSON) checked against type hints."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tokenloom.models.core.marks import ConfigError


class Parsed:
    """What can be made from a mapping of a run file."""

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Any:
        """The value of its plain form, ``{name: {field: value}}``, where the type has such names.

        Raises:
            ConfigError: it has none, an unknown name or field, or a value of the wrong type.
        """
        raise ConfigError(f"{where}: {dict(value)!r} is not a value that can be written here; edit its fields, e.g. {where}.FIELD")


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
        if not _finite(value):
            raise ConfigError(f"{where}: {value!r} is not a finite number")
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint in (type(None), None):
        if value is None:
            return None
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    elif origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: coerce(item, args[1], f"{where}.{key}") for key, item in value.items()}
    elif isinstance(hint, type) and issubclass(hint, Parsed) and isinstance(value, Mapping):
        return hint.parse(value, where)
    # All configs are called Config: what they are nested in says which.
    nested = isinstance(hint, type) and issubclass(hint, Parsed)
    wanted = hint.__qualname__ if nested else getattr(hint, "__name__", None) or str(hint)
    raise ConfigError(f"{where}: {value!r} is not a valid {wanted}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False

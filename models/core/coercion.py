"""Plain values (from YAML or JSON) checked against type hints."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
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

    @classmethod
    def parse_one_of(cls, kinds: Sequence[type[Parsed]], value: Mapping[str, Any], where: str) -> Any:
        """The same, of a field that holds a value of any of these types.

        Raises:
            ConfigError: it is of none of them, or as ``parse`` says.
        """
        raise ConfigError(f"{where}: {dict(value)!r} is not a value that can be written here; edit its fields, e.g. {where}.FIELD")

    @classmethod
    def choices(cls) -> Mapping[str, Any]:
        """What a mapping may call the types that are one of these, none where it has no names for them."""
        return {}


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
        return _one_of(value, args, where)
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
    elif _is_parsed(hint) and isinstance(value, Mapping):
        return hint.parse(value, where)
    elif _is_parsed(hint) and isinstance(value, str) and value in hint.choices():
        return hint.parse({value: None}, where)
    # All configs are called Config: what they are nested in says which.
    wanted = hint.__qualname__ if _is_parsed(hint) else getattr(hint, "__name__", None) or str(hint)
    raise ConfigError(f"{where}: {value!r} is not a valid {wanted}")


def _is_parsed(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Parsed)


def _one_of(value: Any, options: tuple[Any, ...], where: str) -> Any:
    """A value of a union: of the first plain type that takes it, or of the config type that the mapping names."""
    kinds = [option for option in options if _is_parsed(option)]
    written = isinstance(value, Mapping)
    for option in options:
        if not (written and option in kinds):
            try:
                return coerce(value, option, where)
            except ConfigError:
                continue
    if written and len(kinds) == 1:
        return kinds[0].parse(value, where)
    if written and kinds:
        return kinds[0].parse_one_of(kinds, value, where)
    known = sorted(name for kind in kinds for name in kind.choices() if "." not in name)
    shown = " or ".join(_name(option) for option in options)
    raise ConfigError(f"{where}: {value!r} is not a valid {shown}" + (f"; names here: {', '.join(known)}" if known else ""))


def _name(option: Any) -> str:
    if option in (type(None), None):
        return "null"
    return option.__qualname__ if _is_parsed(option) else getattr(option, "__name__", None) or str(option)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False

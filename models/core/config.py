"""Frozen configs of every part, and the marks that decide what a fingerprint covers.

A part nests ``Config`` (a frozen, keyword-only dataclass) and builds itself from it.  A recipe is a
function that returns one full config; ``override`` edits it by dotted path, ``to_dict`` is its
canonical form, from which fingerprints are made, and ``from_dict`` reads that form back.

A config type is known by its tag, a short name of its own that does not change when the class is renamed or moved.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, get_type_hints

from tokenloom.models.core.coercion import Parsed
from tokenloom.models.core.coercion import coerce as coerce
from tokenloom.models.core.limits import after_ranges, check_fields
from tokenloom.models.core.limits import shortened as shortened
from tokenloom.models.core.marks import Added as Added
from tokenloom.models.core.marks import ConfigError as ConfigError
from tokenloom.models.core.marks import Execution as Execution
from tokenloom.models.core.marks import Identity as Identity
from tokenloom.models.core.marks import Mark as Mark
from tokenloom.models.core.marks import enters as enters
from tokenloom.models.core.marks import role_of as role_of
from tokenloom.models.core.stored import JOINED, joined, split
from tokenloom.models.core.stored import stored_as_one as stored_as_one


class Config(Parsed):
    """Base of all part configs; every subclass must be a frozen keyword-only dataclass.

    Subclasses are written as ``@dataclass(frozen=True, kw_only=True) class Config(config.Config)``
    nested in the class that they build; ``build(…)`` then constructs that class from the config and what is given, unless it
    is overridden.  Those that a recipe may hold also give a tag, ``class Config(Head.Config, tag="head.mixture")``: unique, and
    never changed again.
    """

    #: What stored configs call this type; "" for a type that is never stored itself.
    tag: ClassVar[str] = ""

    #: A field engineer's name for this type in tables, the words of its tag if none is given; ``label`` is that of a value.
    words: ClassVar[str] = ""

    def __init_subclass__(cls, *, tag: str = "", label: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.tag = tag
        cls.words = label or tag.rpartition(".")[2].replace("_", " ")
        if (own := cls.__dict__.get("__post_init__")) is not None:
            setattr(cls, "__post_init__", after_ranges(own))  # noqa: B010 - mypy knows no other method here
        if not tag:
            return
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", tag):
            raise TypeError(f"{cls.__qualname__}: tag {tag!r}: use lower case letters, digits, _ and at most one dot")
        other = _TYPES.setdefault(tag, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"tag {tag!r} of {cls.__module__}.{cls.__qualname__} belongs to {other.__module__}.{other.__qualname__}")
        _TYPES[tag] = cls

    def __post_init__(self) -> None:
        """Refuse what cannot be; numbers out of their range are refused before a type's own checks.

        Raises:
            ConfigError: naming the field, the value and what it may be.
        """
        check_fields(self)

    def build(self, *args: Any, **given: Any) -> Any:
        """What this config describes; an axis says in its own ``build`` what is given."""
        return self.construct(*args, **given)

    def construct(self, *args: Any, **given: Any) -> Any:
        """The class that this config is nested in, constructed from it, these arguments, and those by name that it has a use for."""
        host = self.host()
        return host(self, *args, **{name: value for name, value in given.items() if name in _wanted(host)})

    @classmethod
    def host(cls) -> Any:
        """The class that this config type, or the nearest one that it derives from, is nested in.

        Raises:
            TypeError: there is none.
        """
        for kind in cls.__mro__:
            if "." in kind.__qualname__ and "<locals>" not in kind.__qualname__:
                return functools.reduce(getattr, kind.__qualname__.split(".")[:-1], sys.modules[kind.__module__])
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is nested in no class: it needs a build of its own")

    @property
    def needs(self) -> tuple[str, ...]:
        """Of a whole model: roles of the trained models that it depends on, e.g. ``features``; a tokenizer's base is ``tokenizer``."""
        return ()

    @property
    def label(self) -> str:
        """Plain name of this value in the table of methods."""
        return self.words

    @property
    def axis_labels(self) -> dict[str, str]:
        """Of a whole model: the label of its part on each axis that it has, the columns of the table of methods."""
        parts = {axis: getattr(self, axis, None) for axis in AXES}
        return {axis: part.label for axis, part in parts.items() if isinstance(part, Config)}

    def to_dict(self) -> dict[str, Any]:
        """Canonical plain form: ``{"type": tag, field: value, …}`` recursively."""
        return typing.cast(dict[str, Any], canonical(self))

    @classmethod
    def choices(cls) -> dict[str, type[Config]]:
        """Every type that is one of this kind by what a run file calls it: the last word of its tag, or all of it."""
        kinds = {tag: kind for tag, kind in sorted(tags().items()) if issubclass(kind, cls) and not inspect.isabstract(kind)}
        words = [tag.rpartition(".")[2] for tag in kinds]
        return {tag.rpartition(".")[2]: kind for tag, kind in kinds.items() if words.count(tag.rpartition(".")[2]) == 1} | kinds

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Config:
        """A config as a run file has it: ``{NAME: {field: value}}`` of one of its kinds, its own fields, or the canonical form.

        Raises:
            ConfigError: another name, an unknown or missing field, or a value of the wrong type.
        """
        return cls.parse_one_of((cls,), value, where)

    @classmethod
    def parse_one_of(cls, kinds: Sequence[type[Any]], value: Mapping[str, Any], where: str) -> Config:
        if "type" in value:
            made = from_dict(value, where)
            if not isinstance(made, tuple(kinds)):
                wanted = " or ".join(kind.__qualname__ for kind in kinds)
                raise ConfigError(f"{where}: type {value['type']!r} is not a valid {wanted}")
            return made
        known: dict[str, type[Config]] = {}
        for kind in kinds:
            known |= kind.choices()
        name = next(iter(value), "") if len(value) == 1 else ""
        if name in known and isinstance(value[name], Mapping | None):
            return from_fields(known[name], value[name], f"{where}.{name}")
        if len(kinds) == 1 and not inspect.isabstract(kinds[0]) and kinds[0].tag:
            return from_fields(kinds[0], value, where)
        names = sorted(name for name in known if "." not in name or name.rpartition(".")[2] not in known)
        example = next(iter(names), "NAME")
        raise ConfigError(f"{where}: {dict(value)!r}: write one of {', '.join(names)} with its fields, e.g. {{{example}: {{}}}}")


@functools.cache
def _wanted(host: Any) -> frozenset[str]:
    """The arguments that constructing a class takes."""
    return frozenset(inspect.signature(host).parameters)


#: The fields of a whole model's config that are columns of the table of methods.
AXES = ("order", "feed", "net", "head", "objective", "condition", "quantizer", "decoder")

#: Tag to config type, of all modules that are imported.
_TYPES: dict[str, type[Config]] = {}


@functools.cache
def _import_all() -> None:
    """Import every module beside this one, so that all tags are known."""
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not module.name.endswith(".__main__"):
            importlib.import_module(module.name)


#: The package that holds all config types, whatever it stands in.
PACKAGE = __name__[: __name__.index("models") + len("models")]


def tags() -> dict[str, type[Config]]:
    """Every tag with its type."""
    _import_all()
    return {**_TYPES, **{tag: _TYPES[one.host] for tag, one in JOINED.items()}}


def from_dict(data: Mapping[str, Any], where: str = "config") -> Config:
    """The config of a canonical form; fields that it does not have take their defaults.

    Raises:
        ConfigError: an unknown tag or field (a newer version wrote it), a missing field, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {data!r} is no config: a mapping with a type is needed")
    tag = data.get("type")
    if not isinstance(tag, str) or (tag not in _TYPES and tag not in tags()):
        raise ConfigError(f"{where}: no config type has the tag {tag!r}; a newer version may have: update this one")
    data = split(data, lambda name: {field.stored for field in _fields(_TYPES[name])})
    kind = _TYPES[data["type"]]
    fields = {field.stored: field for field in _fields(kind)}
    if unknown := sorted(data.keys() - fields.keys() - {"type"}):
        raise ConfigError(f"{where}: {tag} has no field {unknown[0]!r}; a newer version may have: update this one")
    values = {}
    for name, value in data.items():
        if name != "type":
            field = fields[name]
            values[field.name] = coerce(_revived(value, f"{where}.{name}"), field.hint, f"{where}.{name}")
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default
        raise ConfigError(f"{where}: {tag}: {str(error).partition('() ')[2]}") from error


def _revived(value: Any, where: str) -> Any:
    """Plain data with the configs inside of it made."""
    if isinstance(value, Mapping):
        if "type" in value:
            return from_dict(value, where)
        return {key: _revived(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_revived(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def from_fields(kind: type[Config], given: Any, where: str) -> Config:
    """A config of this type with these fields, as a run file has them; None (nothing written) is none.

    Raises:
        ConfigError: no mapping, an unknown or missing field, or a value that cannot be.
    """
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"{where}: {given!r} is not a mapping of fields, e.g. {{field: value}}")
    hints = {field.name: field.hint for field in _fields(kind)}
    if unknown := [key for key in given or {} if key not in hints]:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; fields here: {', '.join(hints) or 'none'}")
    values = {key: coerce(item, hints[key], f"{where}.{key}") for key, item in (given or {}).items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default
        raise ConfigError(f"{where}: {str(error).partition('() ')[2]}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def fields_from(kind: Any, data: Any, where: str) -> dict[str, Any]:
    """The fields of a plain dataclass from plain data, checked against its type hints.

    Raises:
        ConfigError: no mapping, an unknown or missing field, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: {data!r} is not a mapping of fields")
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    names = {field.name for field in fields}
    if unknown := [name for name in data if name not in names]:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; a newer version may have it: update this one")
    for field in fields:
        if field.name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the field {field.name!r} is missing")
    return {name: coerce(value, hints[name], f"{where}.{name}") for name, value in data.items()}


class _Field(typing.NamedTuple):
    """A field of a config type: name, name in the canonical form, type hint, and whether its default is left out."""

    name: str
    stored: str
    hint: Any
    sparse: bool
    default: Any


def _fields(kind: Any) -> tuple[_Field, ...]:
    return _fields_of(kind)


@functools.cache
def _fields_of(kind: type) -> tuple[_Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        mark = next((e for e in getattr(hints[field.name], "__metadata__", ()) if isinstance(e, Mark)), Mark("identity"))
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        found.append(_Field(field.name, mark.stored or field.name, hints[field.name], mark.sparse, default))
    return tuple(found)


def canonical(value: Any) -> Any:
    """Plain JSON form of a value that has exactly one.

    Raises:
        ConfigError: for a value without a stable serialization (callables, arrays, arbitrary objects, NaN).
    """
    if isinstance(value, Config):
        if not value.tag:
            raise ConfigError(f"{type(value).__module__}.{type(value).__qualname__} has no tag, so it has no stable serialization")
        plain: dict[str, Any] = {"type": value.tag}
        for field in _fields(type(value)):
            item = getattr(value, field.name)
            if not (field.sparse and item == field.default):
                plain[field.stored] = canonical(_as_hinted(item, field.hint))
        return joined(plain)
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


def _as_hinted(value: Any, hint: Any) -> Any:
    """A value as its type hint has it (a float that was written ``1`` is ``1.0``), unchanged where it has another type."""
    try:
        return coerce(value, hint, "")
    except ConfigError:
        return value

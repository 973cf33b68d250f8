"""Stored forms of config types that were split in two: read as before, and stored with the fingerprint that they had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Joined(NamedTuple):
    """A stored form that is now two configs: the type ``host``, and in its ``field`` a value of the type ``value``."""

    host: str
    field: str
    value: str


#: Tag of such a form to what it is now.
JOINED: dict[str, Joined] = {}


def stored_as_one(tag: str, host: str, field: str, value: str) -> None:
    """Store a config of the type ``host`` that has a ``value`` in ``field`` as one config of this tag, with the fields of both.

    For a type that was split in two: what was stored before is read, and what is stored now has the same fingerprint.
    """
    JOINED[tag] = Joined(host, field, value)


def joined(plain: dict[str, Any]) -> dict[str, Any]:
    """A canonical form as it is stored."""
    for tag, (host, field, value) in JOINED.items():
        inner = plain.get(field)
        if plain["type"] == host and isinstance(inner, dict) and inner.get("type") == value:
            return {**{k: v for k, v in plain.items() if k != field}, **inner, "type": tag}
    return plain


def split(plain: Mapping[str, Any], names: Callable[[str], set[str]]) -> Mapping[str, Any]:
    """A stored form as it is built; ``names`` gives the stored fields of the type with a tag."""
    if (one := JOINED.get(plain["type"])) is None:
        return plain
    inside = names(one.value)
    inner = {k: v for k, v in plain.items() if k in inside}
    return {**{k: v for k, v in plain.items() if k not in inside}, one.field: {**inner, "type": one.value}, "type": one.host}

"""The marks of a config's fields, which decide what a fingerprint covers, and the error of a setting that cannot be used."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Mark:
    """Says whether a field belongs to an artifact's identity or only to how it is executed.

    A ``sparse`` field is left out of the canonical form, and so of the fingerprint, while it has its default value.
    ``stored`` is the name that the canonical form has for a field that was renamed.
    """

    role: Literal["identity", "execution"]
    sparse: bool = False
    stored: str = ""


#: The value shapes the result: it enters the fingerprint.
Identity = Annotated[T, Mark("identity")]
#: The same of a field that came later: its default stands for what was always done, so that older fingerprints hold.
Added = Annotated[T, Mark("identity", sparse=True)]
#: The value says where, how fast or how often reported: it never enters the fingerprint.
Execution = Annotated[T, Mark("execution")]


class ConfigError(ValueError):
    """A setting that cannot be used: names the field, the value and what to do."""


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

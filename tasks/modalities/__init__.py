"""Kinds of signals, one room each, found by looking: everything that knows what an image, or a series, is stands in its room."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloom.models.core import signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import upgraded

if TYPE_CHECKING:
    from tokenloom.tasks.modalities.base import Modality
    from tokenloom.tasks.store.artifacts import Outcome, Store


@cache
def kinds() -> dict[str, Modality]:
    """All kinds by name."""
    found: dict[str, Modality] = {}
    for module in pkgutil.iter_modules(__path__):
        room = importlib.import_module(f"{__name__}.{module.name}")
        if (one := getattr(room, "MODALITY", None)) is not None:
            found[one.kind] = one
    return found


def kind(name: str) -> Modality:
    """The kind of this name.

    Raises:
        ConfigError: unknown, with those that there are.
    """
    if name not in kinds():
        raise ConfigError(f"data.kind={name!r} is unknown; there are: {', '.join(sorted(kinds()))}")
    return kinds()[name]


def signal_of(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``SignalSpec`` of a dataset as plain data, from its record's notes; records without one are of square images."""
    found: dict[str, Any] = notes.get("signal") or signals.image(notes["size"], notes["channels"]).to_dict()
    return found


def kind_of(notes: Mapping[str, Any]) -> str:
    """Name of the kind of a dataset or of its tokens, from the record's notes: image where they do not say it."""
    if "tokenizer_spec" in notes:
        return str(upgraded(notes["tokenizer_spec"]["given"])["signal"]["kind"])
    return str(notes["signal"]["kind"]) if "signal" in notes else "image"


def of(notes: Mapping[str, Any]) -> Modality:
    """The kind of a dataset, from its record's notes."""
    return kind(kind_of(notes))


def import_network(name: str, weights: Path, store: Store) -> Outcome | None:
    """The published network of this name, by which some kind is judged, as an artifact; None if no kind knows it."""
    return next((made for each in kinds().values() if (made := each.import_network(name, weights, store)) is not None), None)

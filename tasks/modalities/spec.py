"""The signal that a dataset's record describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.models.core import signals


def signal_of(notes: Mapping[str, Any]) -> dict[str, Any]:
    """The data's ``SignalSpec`` as plain data; records without one are of square images."""
    found: dict[str, Any] = notes.get("signal") or signals.image(notes["size"], notes["channels"]).to_dict()
    return found

"""The model that drafts in speculative decoding: named in the sampling settings, an input of what is made with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELD = "sample.decoder.draft_model.model"


def reference(sample: Mapping[str, Any]) -> str:
    """What sampling settings call the draft model; "" where they name none."""
    return str((_fields(sample) or {}).get("model") or "")


def without_reference(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without that name: the model itself is an input."""
    fields = _fields(sample)
    if fields is None:
        return dict(sample)
    return {**sample, "decoder": {"draft_model": {key: value for key, value in fields.items() if key != "model"}}}


def _fields(sample: Mapping[str, Any]) -> Mapping[str, Any] | None:
    decoder = sample.get("decoder")
    fields = decoder.get("draft_model") if isinstance(decoder, Mapping) else None
    return fields if isinstance(fields, Mapping) else None

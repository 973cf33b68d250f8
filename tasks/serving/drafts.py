"""The second model of a way of decoding, such as one that drafts: named in the sampling settings, an input of what is made with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Where the decoder is not known.
FIELD = "sample.decoder.draft_model.model"


def field(sample: Mapping[str, Any]) -> str:
    """The field that names it, for messages."""
    name, _ = _named(sample)
    return f"sample.decoder.{name}.model" if name else FIELD


def reference(sample: Mapping[str, Any]) -> str:
    """What sampling settings call the second model; "" where they name none."""
    return str(_named(sample)[1].get("model") or "")


def without_reference(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without that name: the model itself is an input."""
    name, fields = _named(sample)
    if not name:
        return dict(sample)
    return {**sample, "decoder": {name: {key: value for key, value in fields.items() if key != "model"}}}


def _named(sample: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A decoder's name and fields; nothing where it is given without fields or as no decoder can be written."""
    decoder = sample.get("decoder")
    if isinstance(decoder, Mapping) and len(decoder) == 1:
        (name, fields), *_ = decoder.items()
        if isinstance(fields, Mapping):
            return str(name), fields
    return "", {}

"""What data is, before any token: the kind of signal, its shape, its channels and the range of its values.

A signal tensor is (B, channels, *shape): an image (B, C, H, W), a series (B, C, T).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tokenloom.models.core.config import ConfigError, fields_from

#: Rows and columns of an image or of a grid.
Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """One item of the data: ``kind`` names its room under ``tasks/modalities``; ``range`` is None for values without bounds."""

    kind: str = "image"
    shape: tuple[int, ...]
    channels: int
    range: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.channels < 1:
            raise ConfigError(f"signal: shape={self.shape}, channels={self.channels}: must be positive")

    @property
    def plane(self) -> Shape:
        """Rows and columns of a signal on a plane.

        Raises:
            ConfigError: this signal is not on a plane.
        """
        if len(self.shape) != 2:
            raise ConfigError(f"signal: {self.kind} of shape {text(self.shape)} has no rows and columns; use another recipe")
        return cast(Shape, self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, equal to what JSON gives back."""
        limits = None if self.range is None else list(self.range)
        return {"kind": self.kind, "shape": list(self.shape), "channels": self.channels, "range": limits}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SignalSpec:
        """Inverse of ``to_dict``.

        Raises:
            ConfigError: an unknown or missing field, or a value of the wrong type.
        """
        return cls(**fields_from(cls, data, "signal"))


def image(rows: int, channels: int, columns: int | None = None) -> SignalSpec:
    """Images in [-1, 1] of this many rows and columns (None: as many as rows)."""
    return SignalSpec(shape=(rows, rows if columns is None else columns), channels=channels)


def text(shape: tuple[int, ...]) -> str:
    """A shape for messages, e.g. ``32x32``."""
    return "x".join(map(str, shape))


def upgraded(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a model was given by the data, in today's form: stored models of square images have ``size`` and ``channels``."""
    if "size" not in given:
        return dict(given)
    rest = {k: v for k, v in given.items() if k not in ("size", "channels")}
    return {"signal": image(given["size"], given["channels"]).to_dict(), **rest}

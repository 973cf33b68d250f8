"""Conditions of samples by name: a class, a text as it is written, features of a text, values such as an image or a history.

Shapes: B rows, T bytes or pieces of text, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Class condition: (B,) int64; the value ``classes`` (one past the last) is the null class."""

    name: ClassVar[str] = "class"

    label_B: Tensor

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.label_B)

    def to(self, device: torch.device | str) -> Labels:
        return Labels(self.label_B.to(device))

    def part(self, start: int, stop: int) -> Labels:
        """Rows ``start:stop``."""
        return Labels(self.label_B[start:stop])


@dataclass(frozen=True)
class Text:
    """Text condition as it is written: UTF-8 bytes (B, T) uint8, zero after the end, and how many count (B,) int64.

    No bytes at all are the null text.
    """

    name: ClassVar[str] = "text"

    byte_BT: Tensor
    length_B: Tensor

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Text:
        """These texts, padded to the longest; None (no text) is the null text."""
        raw = [(text or "").encode() for text in texts]
        width = max((len(each) for each in raw), default=0)
        flat = bytearray(b"".join(each.ljust(width, b"\0") for each in raw))
        byte_BT = torch.frombuffer(flat, dtype=torch.uint8) if flat else torch.zeros(0, dtype=torch.uint8)
        return cls(byte_BT.view(len(raw), width), torch.tensor([len(each) for each in raw], dtype=torch.int64))

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.length_B)

    def to(self, device: torch.device | str) -> Text:
        return Text(self.byte_BT.to(device), self.length_B.to(device))

    def part(self, start: int, stop: int) -> Text:
        """Rows ``start:stop``."""
        return Text(self.byte_BT[start:stop], self.length_B[start:stop])


@dataclass(frozen=True)
class TextFeatures:
    """Text condition from a frozen encoder: features (B, T, D) and mask (B, T), true where text is."""

    name: ClassVar[str] = "features"

    feature_BTD: Tensor
    mask_BT: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.feature_BTD)

    def to(self, device: torch.device | str) -> TextFeatures:
        return TextFeatures(self.feature_BTD.to(device), None if self.mask_BT is None else self.mask_BT.to(device))

    def part(self, start: int, stop: int) -> TextFeatures:
        """Rows ``start:stop``."""
        return TextFeatures(self.feature_BTD[start:stop], None if self.mask_BT is None else self.mask_BT[start:stop])


@dataclass(frozen=True)
class Values:
    """Numbers of each row (B, C, …) float: a control image, a mask, the history of a series.

    ``given_B`` is false where a row has none (null).
    """

    name: ClassVar[str] = "values"

    value: Tensor
    given_B: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows B."""
        return len(self.value)

    @property
    def present_B(self) -> Tensor:
        """(B,) bool: which rows have values."""
        return torch.ones(self.rows, dtype=torch.bool, device=self.value.device) if self.given_B is None else self.given_B

    def to(self, device: torch.device | str) -> Values:
        return Values(self.value.to(device), None if self.given_B is None else self.given_B.to(device))

    def part(self, start: int, stop: int) -> Values:
        """Rows ``start:stop``."""
        return Values(self.value[start:stop], None if self.given_B is None else self.given_B[start:stop])


Condition = Labels | Text | TextFeatures | Values


@dataclass(frozen=True)
class Conditions(Mapping[str, Condition]):
    """The conditions of some rows, by name (``class``, ``text``, ``features``, or a column of the data)."""

    by_name: Mapping[str, Condition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, condition in self.by_name.items():
            if not isinstance(condition, Condition):
                raise TypeError(
                    f"condition {name!r}: {type(condition).__name__} is no condition: give Labels, Text, TextFeatures or Values"
                )
        if len({condition.rows for condition in self.by_name.values()}) > 1:
            counts = {name: condition.rows for name, condition in self.by_name.items()}
            raise ValueError(f"conditions of different numbers of rows: {counts}")

    @classmethod
    def of(cls, given: Conditions | Condition | Mapping[str, Condition] | None) -> Conditions:
        """These conditions, by name; one alone goes by the name of its type.

        Raises:
            TypeError: something else.
        """
        if given is None or isinstance(given, Conditions):
            return cls() if given is None else given
        return cls(given if isinstance(given, Mapping) else {getattr(given, "name", "condition"): given})

    def __getitem__(self, name: str) -> Condition:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def rows(self) -> int:
        """Number of rows B; 0 without any condition."""
        return next((condition.rows for condition in self.by_name.values()), 0)

    def with_(self, name: str, condition: Condition) -> Conditions:
        """The same with one condition set."""
        return Conditions({**self.by_name, name: condition})

    def to(self, device: torch.device | str) -> Conditions:
        """The conditions on a device."""
        return Conditions({name: condition.to(device) for name, condition in self.by_name.items()})

    def part(self, start: int, stop: int) -> Conditions:
        """Rows ``start:stop``."""
        return Conditions({name: condition.part(start, stop) for name, condition in self.by_name.items()})


def labels_of(conditions: Conditions | Condition | None) -> Tensor | None:
    """(B,) class labels among the conditions, if there are some."""
    found = None if conditions is None else Conditions.of(conditions).get(Labels.name)
    return found.label_B if isinstance(found, Labels) else None

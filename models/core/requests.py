"""What a sample is asked to be: a class, a text as it is written, or the features of a text.

Shapes: B rows, T bytes or pieces of text, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Class condition: (B,) int64; the value ``classes`` (one past the last) is the null class."""

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


Condition = Labels | Text | TextFeatures

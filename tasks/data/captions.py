"""Captions on their way from shards to batches: ragged bytes in the node cache, and features of frozen encoders beside them.

Shapes: N rows of a shard, U different captions of it, B rows of a batch, T bytes or pieces of text, F feature width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tokenloom.models.core.requests import Text, TextFeatures

EXAMPLES = 10  # captions that a model keeps as examples of requests


@dataclass(frozen=True)
class Captions:
    """The captions of one shard: UTF-8 bytes one after another, and where each of them ends (N,); no bytes are no caption."""

    flat: NDArray[np.uint8]
    end_N: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Captions:
        """From texts; None is no caption."""
        raw = [(text or "").encode() for text in texts]
        return cls(np.frombuffer(b"".join(raw), np.uint8), np.cumsum([len(each) for each in raw], dtype=np.int64))

    def bytes(self, row: int) -> bytes:
        """One caption's bytes."""
        return self.flat[self.end_N[row - 1] if row else 0 : self.end_N[row]].tobytes()

    @property
    def longest(self) -> int:
        """Bytes of the longest caption."""
        return int(np.diff(self.end_N, prepend=0).max(initial=0))

    def texts(self) -> list[str]:
        """All captions; the empty text where there is none."""
        return [self.bytes(row).decode() for row in range(len(self.end_N))]


def of_shard(raw: bytes) -> list[str | None]:
    """The column ``caption`` of an image or token shard's Parquet bytes; no captions where it has none."""
    file = pq.ParquetFile(io.BytesIO(raw))
    if "caption" not in file.schema_arrow.names:
        return [None] * file.metadata.num_rows
    texts: list[str | None] = file.read(columns=["caption"])["caption"].to_pylist()
    return texts


def examples(texts: Sequence[str | None]) -> list[str]:
    """The first different captions, at most ``EXAMPLES``."""
    return list(dict.fromkeys(text for text in texts if text))[:EXAMPLES]


def in_turn(label_N: NDArray[np.int64], label_M: NDArray[np.int64], usable_M: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each wanted label the number of a usable item of that class, all of them in turn; -1 for a class without any."""
    own = {k: np.flatnonzero((label_M == k) & usable_M) for k in np.unique(label_N).tolist()}
    item_N = np.full(len(label_N), -1)
    for k, items in own.items():
        wanted = np.flatnonzero(label_N == k)
        if len(items):
            item_N[wanted] = items[np.arange(len(wanted)) % len(items)]
    return item_N


def text_batch(raw: Sequence[bytes], longest: int) -> Text:
    """Captions of a batch as a condition, padded to ``longest``, which is the same for all batches of a split."""
    byte_BT = np.zeros((len(raw), longest), np.uint8)
    for row, each in enumerate(raw):
        byte_BT[row, : len(each)] = np.frombuffer(each, np.uint8)
    return Text(torch.from_numpy(byte_BT), torch.tensor([len(each) for each in raw], dtype=torch.int64))


@dataclass(frozen=True)
class Features:
    """Features of the different captions of one shard (U, T, F) float16, how many pieces each has (U,), and each row's caption (N,).

    A row without a caption has the number -1.
    """

    feature_UTF: NDArray[np.float16]
    pieces_U: NDArray[np.int64]
    caption_N: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], encode: Callable[[Sequence[str]], TextFeatures]) -> Features:
        """Encode each different caption once."""
        different = list(dict.fromkeys(text for text in texts if text))
        number = {text: i for i, text in enumerate(different)}
        found = encode(different)
        assert found.mask_BT is not None
        return cls(
            found.feature_BTD.numpy().astype(np.float16),
            found.mask_BT.sum(1).numpy(),
            np.array([number.get(text, -1) for text in texts], np.int64),
        )


def feature_batch(rows: Sequence[tuple[Features, int]], padding: str = "right") -> TextFeatures:
    """Features (B, T, F) float32 of these rows of shards, with their masks; ``padding`` is the side on which shorter texts are padded."""
    _, length, width = rows[0][0].feature_UTF.shape
    feature, pieces = np.zeros((len(rows), length, width), np.float32), np.zeros(len(rows), np.int64)
    for i, (features, row) in enumerate(rows):
        if (caption := features.caption_N[row]) >= 0:
            feature[i], pieces[i] = features.feature_UTF[caption], features.pieces_U[caption]
    mask_BT = np.arange(length) < pieces[:, None]
    if padding == "left":
        mask_BT = mask_BT[:, ::-1].copy()
    return TextFeatures(torch.from_numpy(feature), torch.from_numpy(mask_BT))

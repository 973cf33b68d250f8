"""Further columns of items: a control image, a mask, a source image, from a shard to the conditions of a batch.

Shapes: N rows of a shard, B rows of a batch, C channels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Values
from tokenloom.tasks.modalities.base import Modality

PREFIX = "column:"


def stored(name: str) -> str:
    """Name of a further column (``data.columns``) in a shard."""
    return PREFIX + name


def further_columns(raw: bytes, views: Sequence[str] = ("plain",)) -> dict[str, list[bytes | None]]:
    """The further columns of a dataset or token shard's Parquet bytes, once for each view, as stored; None where an item has none.

    Raises:
        ConfigError: other views than the plain one, under which item and column would not belong together.
    """
    names = [name for name in pq.ParquetFile(io.BytesIO(raw)).schema_arrow.names if name.startswith(PREFIX)]
    if names and list(views) != ["plain"]:
        raise ConfigError(f"extract.views={list(views)}: data with columns ({', '.join(names)}) has the view plain alone")
    table = pq.ParquetFile(io.BytesIO(raw)).read(names) if names else {}
    return {name: table[name].to_pylist() for name in names}


def arrays_of(raw: bytes, modality: Modality) -> dict[str, np.ndarray]:
    """The arrays of the node cache: ``column-NAME`` (N, …), zero where an item has none, and ``given-NAME`` bool (N,)."""
    found: dict[str, np.ndarray] = {}
    for name, values in further_columns(raw).items():
        items = [None if value is None else modality.column(value) for value in values]
        blank = np.zeros_like(next((item for item in items if item is not None), np.zeros((1, 1, 1), np.uint8)))
        short = name.removeprefix(PREFIX)
        found[f"column-{short}"] = np.stack([blank if item is None else item for item in items])
        found[f"given-{short}"] = np.array([item is not None for item in items])
    return found


def values_of(rows: Sequence[tuple[np.ndarray, bool]], modality: Modality) -> Values:
    """Stored items of a batch, and whether there is one, as a condition: the signal (B, C, *shape) of their kind."""
    blank = np.zeros_like(next((item for item, given in rows if given), rows[0][0]))
    data = np.stack([item if given else blank for item, given in rows])
    return Values(modality.tensor(data), torch.tensor([given for _, given in rows]))

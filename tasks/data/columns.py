"""Further columns of items: a control image, a mask, a source image, from a shard to the conditions of a batch.

Shapes: N rows of a shard, B rows of a batch, H W C image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Values
from tokenloom.tasks.data import png

PREFIX = "column:"


def stored(name: str) -> str:
    """Name of a further column (``data.columns``) in a shard."""
    return PREFIX + name


def further_columns(raw: bytes, views: Sequence[str] = ("plain",)) -> dict[str, list[bytes | None]]:
    """The further columns of an image or token shard's Parquet bytes, once for each view; PNG bytes, None where an item has none.

    Raises:
        ConfigError: other views than the plain one, under which image and column would not belong together.
    """
    names = [name for name in pq.ParquetFile(io.BytesIO(raw)).schema_arrow.names if name.startswith(PREFIX)]
    if names and list(views) != ["plain"]:
        raise ConfigError(f"extract.views={list(views)}: data with columns ({', '.join(names)}) has the view plain alone")
    table = pq.read_table(io.BytesIO(raw), columns=names) if names else {}
    return {name: table[name].to_pylist() for name in names}


def arrays_of(raw: bytes) -> dict[str, np.ndarray]:
    """The arrays of the node cache: ``column-NAME`` uint8 (N, H, W, C), zero where an item has none, and ``given-NAME`` bool (N,)."""
    found: dict[str, np.ndarray] = {}
    for name, values in further_columns(raw).items():
        images = [None if value is None else png.decode(value) for value in values]
        shape = next((image.shape for image in images if image is not None), (1, 1, 1))
        short = name.removeprefix(PREFIX)
        found[f"column-{short}"] = np.stack([np.zeros(shape, np.uint8) if image is None else image for image in images])
        found[f"given-{short}"] = np.array([image is not None for image in images])
    return found


def values_of(rows: Sequence[tuple[np.ndarray, bool]]) -> Values:
    """Stored images (H, W, C) uint8 of a batch, and whether there is one, as a condition (B, C, H, W) in [-1, 1]."""
    shape = next((image.shape for image, given in rows if given), rows[0][0].shape)
    data = np.stack([image if given else np.zeros(shape, np.uint8) for image, given in rows])
    value = torch.from_numpy(data).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
    return Values(value, torch.tensor([given for _, given in rows]))

"""The windows of a shard, as they are stored.

Shapes: N windows, T values, C channels.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.tasks.runtime.errors import ArtifactError


def windows_of(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Windows float32 (N, T, C) as they are stored, standardised; labels, and the length of the history."""
    try:
        table = pq.ParquetFile(io.BytesIO(raw)).read(["values", "channels", "history", "label"])
        flat = table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        data = flat.reshape(len(table), -1, table["channels"][0].as_py())
        return np.ascontiguousarray(data, np.float32), table["label"].to_numpy(), table["history"][0].as_py()
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
        raise ArtifactError(f"{where}: not a whole shard of series ({error})") from error

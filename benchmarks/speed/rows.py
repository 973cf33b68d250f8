"""Images and tokens of noise in a store, for the benches of the loop and the loader."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.tasks.data.loader import Rows, Shard
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.store.artifacts import Store


def image_rows(store: Store, rows: int, size: int, channels: int = 1, shards: int = 1) -> Rows:
    """Shards of noisy images (size, size, channels)."""
    made = []
    for index in range(shards):
        random = np.random.default_rng([index, rows, size])
        pixels = random.integers(0, 256, (rows // shards, size, size, channels)).astype(np.uint8)
        table = pa.table(
            {
                "key": [f"{index}-{i}" for i in range(len(pixels))],
                "image": pa.array([png.encode(image) for image in pixels], pa.binary()),
                "label": pa.array(np.arange(len(pixels)) % 10, pa.int32()),
                "caption": pa.nulls(len(pixels), pa.string()),
                "source": [f"{index}/{i}" for i in range(len(pixels))],
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        data = sink.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        path = f"dataset/noise/shards/{digest[:12]}.parquet"
        store.storage.write(path, data)
        made.append(Shard(path, "train", len(pixels), digest, len(data)))
    return Rows("images", store.uri, tuple(made), 10)

"""Shards of tiny generated images in a store."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.tasks.data.loader import Rows, Shard
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.store.artifacts import Store


def write_image_rows(store: Store, rows: int, split: str = "train", size: int = 4, classes: int = 4, seed: int = 0) -> Rows:
    """One shard of noisy grey images, brighter by class, and the rows that it holds."""
    random = np.random.default_rng([seed, split == "train"])
    labels = np.arange(rows) % classes
    pixels = np.clip(random.normal(60 * labels[:, None, None, None] + 30, 20, (rows, size, size, 1)), 0, 255).astype(np.uint8)
    table = pa.table(
        {
            "key": [f"{split}-{i}" for i in range(rows)],
            "image": pa.array([png.encode(image) for image in pixels], pa.binary()),
            "label": pa.array(labels, pa.int32()),
            "caption": pa.nulls(rows, pa.string()),
            "source": [f"{split}/{i}" for i in range(rows)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"dataset/noise/shards/{split}-{digest[:12]}.parquet"
    store.storage.write(path, data)
    return Rows("signals", store.uri, (Shard(path, split, rows, digest, len(data)),), classes)

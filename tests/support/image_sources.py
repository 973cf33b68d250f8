"""One set of images in every form that a source may have: folders, tar files, Parquet, and a folder for the hub's library."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import encoded
from PIL import Image

FORMS = ("folder", "webdataset", "parquet", "hf")
#: The same, with what takes long left to the long tests: the library of the hub makes a table of its own of every change.
SHORT = ("folder", "webdataset", "parquet", pytest.param("hf", marks=pytest.mark.long))
Row = tuple[str, str, bytes]  # key, class, file


def png(seed: int, size: tuple[int, int] = (8, 8)) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), dtype=np.uint8)))


def rows_of_classes(**counts: int) -> list[Row]:
    """So many images of each class, different ones."""
    return [(f"{name}-{i:03d}", name, png(sum(map(ord, name)) * 1000 + i)) for name, count in counts.items() for i in range(count)]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", errors="surrogateescape") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: Mapping[str, Any], names: Sequence[str] | None = None, label: str = "label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if names is not None:
        features = {"info": {"features": {label: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pq.write_table(table, path)
    return path


def write(form: str, folder: Path, rows: Sequence[Row], part: str = "a") -> str:
    """Write the images in this form (one more file of it, for another ``part``); the source that reads them all."""
    if form == "folder":
        for key, label, data in rows:
            path = folder / "images" / label / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"folder:{folder}/images"
    if form == "webdataset":
        members = [(f"{key}.{end}", data) for key, label, image in rows for end, data in (("png", image), ("cls", label.encode()))]
        write_tar(folder / f"{part}.tar", members)
        return f"webdataset:{folder}/*.tar"
    columns = {"image": [data for _, _, data in rows], "label": [label for _, label, _ in rows]}
    write_parquet(folder / "rows" / f"{part}.parquet", columns)
    return f"parquet:{folder}/rows/*.parquet" if form == "parquet" else f"hf:{folder}/rows"


@pytest.fixture
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library with a cache of its own, off line and without bars."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)

"""Which rows each step sees, and where they come from: no state, no order to save, flat memory.

B rows of a batch, N rows of a split, H W image rows and columns, C channels.  The data order is a function of
(seed, step); shards are copied once into the node's cache as ``.npy`` files and read through memory maps.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.config import ConfigError
from models.draws import seed_of
from models.protocols import Batch, Labels, TokenLayout, Tokens
from tasks import png
from tasks.artifacts import sha256_of
from tasks.errors import ArtifactError
from tasks.leases import file_lock
from tasks.storage import Storage, sync_folder
from tasks.tokens import read_tokens

_FORMAT = 1  # of the node cache; raised when the arrays below change


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split; ``path`` is relative to the store."""

    path: str
    split: str
    rows: int
    sha256: str
    size: int


@dataclass(frozen=True)
class Rows:
    """The rows of one split, as plain data that can travel to a worker.

    ``store`` is the store's absolute address; ``classes`` the number of classes (0 without labels);
    ``layout`` that of the tokens, None for images.
    """

    kind: Literal["images", "tokens"]
    store: str
    shards: tuple[Shard, ...]
    classes: int
    layout: dict[str, Any] | None = None

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @classmethod
    def of(cls, notes: Mapping[str, Any], store: str, split: str) -> Rows:
        """The rows of a split, from the notes of a dataset's or tokens' record."""
        shards = tuple(Shard(**{k: s[k] for k in Shard.__dataclass_fields__}) for s in notes["shards"] if s["split"] == split)
        layout = notes.get("layout")
        return cls("tokens" if layout else "images", store, shards, len(notes["classes"]), layout)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rows:
        """Inverse of ``to_dict``."""
        return cls(**{**data, "shards": tuple(Shard(**shard) for shard in data["shards"])})


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    # Raw Philox numbers and a stable sort: unlike Generator.permutation both are fixed over numpy's versions.
    keys = np.random.Philox(key=seed_of(seed, "rows", epoch)).random_raw(rows)
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order


def indices(seed: int, step: int, batch: int, rows: int) -> np.ndarray:
    """Rows of the global batch of one step: (batch,) int64.

    Each epoch is a permutation keyed by (seed, epoch), epochs follow each other without a gap, so a batch may
    span two; no row is dropped or padded.
    """
    if rows < 1 or batch < 1 or step < 0:
        raise ConfigError(f"step={step}, batch={batch}, rows={rows}: needs at least one row and a positive batch")
    position = step * batch + np.arange(batch, dtype=np.int64)
    epoch, within = position // rows, position % rows
    chosen = np.empty(batch, np.int64)
    for each in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == each
        chosen[here] = _permutation(seed, each, rows)[within[here]]
    return chosen


def share(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part (start, stop) of a global batch that a rank works on; sizes differ by at most one."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank}, world={world}: needs 0 <= rank < world")
    return batch * rank // world, batch * (rank + 1) // world


class Loader:
    """Random access to the rows of a split.

    Args:
        rows: what to read.
        cache: the node's cache folder; each shard fills it once, whoever of the node's processes comes first.

    Raises:
        ArtifactError: a shard is missing, cut short, has the wrong hash, or holds values out of range.
    """

    def __init__(self, rows: Rows, cache: Path) -> None:
        if not rows.shards:
            raise ConfigError("no shards in this split: check the shares of validation and test, or the data")
        self.rows = rows
        self.layout = TokenLayout.from_dict(rows.layout) if rows.layout else None
        self._starts = np.cumsum([0, *(shard.rows for shard in rows.shards)])
        storage = Storage(rows.store)
        self._data, self._labels = [], []
        for shard in rows.shards:
            data, labels = _open(storage, shard, rows, self.layout, Path(cache))
            if labels.size and (labels.min() < 0 or labels.max() >= max(1, rows.classes)):
                where = storage.uri(shard.path)
                raise ArtifactError(f"{where}: labels from {labels.min()} to {labels.max()}, there are {rows.classes} classes")
            self._data.append(data)
            self._labels.append(labels)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def get(self, idx: np.ndarray) -> Batch:
        """The rows at these positions, in this order: images float32 (B, C, H, W) in [-1, 1] or tokens, with labels."""
        data, label_B = self._gather(np.asarray(idx, np.int64))
        condition = Labels(torch.from_numpy(label_B.astype(np.int64)))
        if self.layout is not None:
            return Batch(tokens=Tokens(torch.from_numpy(data), self.layout), condition=condition)
        image_BCHW = torch.from_numpy(data).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        return Batch(image_BCHW=image_BCHW.contiguous(), condition=condition)

    def pixels(self, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The stored images uint8 (B, H, W, C) and labels int64 (B,), for metrics and pictures."""
        data, label_B = self._gather(np.asarray(idx, np.int64))
        return data, label_B.astype(np.int64)

    def _gather(self, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if idx.size and (idx.min() < 0 or idx.max() >= len(self)):
            raise IndexError(f"rows {idx.min()} to {idx.max()} of {len(self)}")
        data = np.empty((len(idx), *self._data[0].shape[1:]), self._data[0].dtype)
        label_B = np.empty(len(idx), np.int32)
        owner = np.searchsorted(self._starts, idx, side="right") - 1
        for i in np.unique(owner):
            here = owner == i
            within = idx[here] - self._starts[i]
            data[here], label_B[here] = self._data[i][within], self._labels[i][within]
        return data, label_B


def _open(storage: Storage, shard: Shard, rows: Rows, layout: TokenLayout | None, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of one shard's arrays in the node cache, which is filled when they are not there or not whole."""
    folder = cache / "rows" / f"{rows.kind}-{_FORMAT}" / f"{shard.sha256[:32]}"
    if not _whole(folder):
        with file_lock(cache / "locks" / f"{folder.name}.lock", f"the cached shard {shard.path}"):
            if not _whole(folder):
                _fill(storage, shard, layout, folder)
    return map_array(folder / "data.npy"), np.load(folder / "labels.npy")


def map_array(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file as a private memory map that keeps no file open, so that shards may be many thousands."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        start = file.tell()
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    array = mapped[start:].view(dtype).reshape(shape)
    array.setflags(write=False)
    return array


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "sizes.json").read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def read_shard(storage: Storage, shard: Shard) -> bytes:
    """A shard's bytes, size and hash verified.

    Raises:
        ArtifactError: missing, cut short or changed, naming the path.
    """
    where = storage.uri(shard.path)
    try:
        raw = storage.read(shard.path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{where}: missing; run again to make it anew") from error
    if len(raw) != shard.size:
        raise ArtifactError(f"{where}: {len(raw)} bytes, {shard.size} are recorded: the shard is cut short; run again to make it anew")
    if sha256_of(raw) != shard.sha256:
        raise ArtifactError(f"{where}: its content is not what was recorded (wrong hash); delete it and run again")
    return raw


def _fill(storage: Storage, shard: Shard, layout: TokenLayout | None, folder: Path) -> None:
    where, raw = storage.uri(shard.path), read_shard(storage, shard)
    if layout is None:
        data, labels = decode_images(raw, where)
    else:
        tokens = read_tokens(raw, where, layout)
        data, labels = tokens.data, tokens.label_N
    if len(data) != shard.rows:
        raise ArtifactError(f"{where}: {len(data)} rows, {shard.rows} are recorded")
    filling = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    filling.mkdir(parents=True)
    np.save(filling / "data.npy", data)
    np.save(filling / "labels.npy", labels.astype(np.int32))
    sizes = {name: (filling / name).stat().st_size for name in ("data.npy", "labels.npy")}
    (filling / "sizes.json").write_text(json.dumps(sizes))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(filling, folder)
    sync_folder(folder.parent)


def decode_images(raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and labels int32 (N,) of an image shard's Parquet bytes.

    Raises:
        ArtifactError: damaged, or images of different sizes.
    """
    try:
        table = pq.read_table(io.BytesIO(raw), columns=["image", "label"])
        images = [png.decode(value.as_py()) for value in table["image"]]
        return np.stack(images), table["label"].to_numpy()
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ArtifactError(f"{where}: not a whole image shard ({error})") from error

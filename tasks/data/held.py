"""How the items of a split are held on a node: decoded in one array, or as encoded bytes that are decoded when they are asked for.

N rows of a split, S shards.  Each shard is brought in when a row of it is asked for first, whoever of the node's processes comes
first; one that is in the cache is not fetched again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.tasks import modalities
from tokenloom.tasks.data import node_cache
from tokenloom.tasks.data.arrays import grown, map_array, whole, write_arrays
from tokenloom.tasks.data.captions import Captions, of_shard
from tokenloom.tasks.data.columns import arrays_of
from tokenloom.tasks.data.rows import Rows, Shard, read_shard
from tokenloom.tasks.data.tokens import read_tokens
from tokenloom.tasks.runtime.errors import ArtifactError, MixedSizesError
from tokenloom.tasks.store.artifacts import canonical_json, sha256_of
from tokenloom.tasks.store.leases import file_lock
from tokenloom.tasks.store.storage import Storage

_OPEN = 128  # shards of encoded items whose files are kept open


class Held(ABC):
    """The items of a split on this node."""

    def __init__(self, rows: Rows, cache: Path, limit: float) -> None:
        self.rows, self.cache, self.limit = rows, cache, limit
        self.storage = Storage(rows.store)
        self.complete = False  # whether all shards are here for good
        self._broken: dict[int, ArtifactError] = {}
        self.starts = np.cumsum([0, *(shard.rows for shard in rows.shards)])

    def owner(self, idx: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each row."""
        return np.searchsorted(self.starts, idx, side="right") - 1

    @abstractmethod
    def gather(self, idx: NDArray[np.int64]) -> tuple[NDArray[Any] | list[bytes], NDArray[np.int64]]:
        """Stored items, decoded (B, …) or encoded, and labels (B,) of rows whose shards are there."""

    @abstractmethod
    def bring(self, shards: Iterable[int]) -> None:
        """See that these shards are on the node.

        Raises:
            ArtifactError: a shard is missing, cut short, has the wrong hash, or holds values out of range.
        """

    @contextlib.contextmanager
    def _alone(self, i: int, lock: Path) -> Iterator[None]:
        """Bring a shard while nobody else does; what was wrong with it is told to all who ask for it, as damage is put aside at once."""
        with file_lock(lock, f"the cached shard {self.rows.shards[i].path}"):
            if i in self._broken:
                raise self._broken[i]
            try:
                yield
            except ArtifactError as error:
                self._broken[i] = error
                raise

    def _labels(self, labels: NDArray, shard: Shard) -> NDArray[np.int64]:
        if len(labels) != shard.rows:
            raise ArtifactError(f"{self.storage.uri(shard.path)}: {len(labels)} rows, {shard.rows} are recorded")
        return self.rows.labels(shard, labels, self.storage.uri(shard.path))


class Flat(Held):
    """One array of all rows (N, …), filled shard by shard, so that a gather costs what it costs from one file.

    Beside it: labels int64 (N,), lengths int32 (N,) of tokens, and of each shard a folder with its captions and columns.
    """

    def __init__(self, rows: Rows, cache: Path, limit: float, layout: TokenLayout | None, larger: bool = False) -> None:
        super().__init__(rows, cache, limit)
        self.layout, self.larger = layout, larger
        parts: list[Any] = [rows.kind, rows.modality, rows.layout, None if larger else rows.shape, *(shard.sha256 for shard in rows.shards)]
        parts += [list(rows.numberings[s.numbering]) for s in rows.shards if s.numbering is not None]
        self.folder = node_cache.folder_of(cache, node_cache.FLAT, sha256_of(canonical_json(parts)))
        self.done = np.zeros(len(rows.shards), bool)
        self._data: dict[str, NDArray[Any]] = {}
        self._lock = RLock()
        with file_lock(node_cache.lock_of(cache, self.folder), f"the cache of {len(rows.shards)} shards"):
            self._open()
        node_cache.used(self.folder)

    def _open(self) -> None:
        """Map what an earlier process left, if it is whole."""
        names = ("data", *(("lengths",) if self.layout else ()), "labels")  # in the order in which they are made
        try:
            self._data = {name: grown(self.folder / f"{name}.npy") for name in names}
            done = os.listdir(self.folder / "done")
        except (OSError, ValueError):
            self._data = {}
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for name in done:
            self.done[int(name)] = True
        self.complete = bool(self.done.all())

    def bring(self, shards: Iterable[int]) -> None:
        for i in shards:
            if self.done[i]:
                continue
            with self._alone(i, node_cache.lock_of(self.cache, self.folder, str(i))):
                if not (self.folder / "done" / str(i)).exists():
                    self._fill(i)
                elif not self._data:
                    self._make_room({})
                self.done[i] = True
        self.complete = bool(self.done.all())

    def _fill(self, i: int) -> None:
        shard = self.rows.shards[i]
        arrays = shard_arrays(self.storage, shard, self.rows, self.layout, self.larger)
        own = {"data": arrays.pop("data")}
        if self.layout:
            own["lengths"] = arrays.pop("lengths", np.full(shard.rows, self.layout.length)).astype(np.int32)
        own["labels"] = self._labels(arrays.pop("labels"), shard)
        if not self._data:
            self._make_room(own)
        first = self._data["data"]
        if own["data"].shape[1:] != first.shape[1:]:
            other, this = own["data"].shape[1:], first.shape[1:]
            raise MixedSizesError(f"{self.storage.uri(shard.path)}: items of shape {other}, the shards before it have {this}")
        for name, array in own.items():
            self._data[name][self.starts[i] : self.starts[i + 1]] = array
        if any(name.startswith("column-") or (len(array) and array.any()) for name, array in arrays.items()):
            write_arrays(self.beside(i), arrays)
        with contextlib.suppress(FileNotFoundError):  # it was removed to make room: what is mapped stays
            (self.folder / "done" / str(i)).touch()

    def _make_room(self, like: Mapping[str, NDArray[Any]]) -> None:
        """Open the arrays, made for all rows where no process has made them."""
        with self._lock, file_lock(node_cache.lock_of(self.cache, self.folder), f"the cache of {len(self.rows.shards)} shards"):
            if not self._data and like and not (self.folder / "labels.npy").exists():
                size = len(self.rows) * sum(array.nbytes // max(1, len(array)) for array in like.values())
                node_cache.trim(self.cache, self.limit - size)
                (self.folder / "done").mkdir(parents=True, exist_ok=True)
                for name, array in like.items():
                    grown(self.folder / f"{name}.npy", (len(self.rows), *array.shape[1:]), array.dtype)
            if not self._data:
                self._open()

    def beside(self, i: int) -> Path:
        """The folder of a shard's captions and columns; there is none where it has neither."""
        return self.folder / f"shard-{i:06d}"

    def captions(self, i: int) -> Captions:
        """The captions of a shard."""
        folder = self.beside(i)
        if not (folder / "ends.npy").exists():
            return Captions(np.zeros(0, np.uint8), np.zeros(self.rows.shards[i].rows, np.int64))
        return Captions(map_array(folder / "captions.npy"), np.load(folder / "ends.npy"))

    def gather(self, idx: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Stored items (B, …) and labels (B,) of rows whose shards are there."""
        return self._data["data"].take(idx, axis=0), self._data["labels"].take(idx)  # faster than a selection

    def lengths(self, idx: NDArray[np.int64]) -> NDArray[np.int32]:
        """Valid tokens of these rows (B,)."""
        return self._data["lengths"][idx]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels of all rows (N,)."""
        return self._data["labels"]

    @property
    def ragged(self) -> bool:
        """Whether any row has fewer tokens than the layout."""
        return self.layout is not None and bool((self._data["lengths"] != self.layout.length).any())


class Encoded(Held):
    """The items as stored, a folder a shard; they are read from open files, so that memory does not grow with what was read."""

    def __init__(self, rows: Rows, cache: Path, limit: float) -> None:
        super().__init__(rows, cache, limit)
        self._open: OrderedDict[int, tuple[int, NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._lock = RLock()
        self.modality = modalities.kind(rows.modality)

    def bring(self, shards: Iterable[int]) -> None:
        for i in shards:
            self._opened(i)

    def gather(self, idx: NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.int64]]:
        """Encoded items and labels (B,) of these rows."""
        owner, label_B, items = self.owner(idx), np.empty(len(idx), np.int64), [b""] * len(idx)
        within = idx - self.starts[owner]
        for place in np.argsort(owner, kind="stable").tolist():  # shard by shard
            i, row = int(owner[place]), int(within[place])
            with self._lock:
                file, end_N, label_N = self._opened(i)
                begin = int(end_N[row - 1]) if row else 0
                items[place], label_B[place] = os.pread(file, int(end_N[row]) - begin, begin), label_N[row]
        return items, label_B

    def _opened(self, i: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        with self._lock:
            if i in self._open:
                self._open.move_to_end(i)
                return self._open[i]
        found = self._found(i)
        with self._lock:
            if i in self._open:  # another thread was faster
                os.close(found[0])
                return self._open[i]
            self._open[i] = found
            while len(self._open) > _OPEN:
                os.close(self._open.popitem(last=False)[1][0])
            return found

    def _found(self, i: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
        shard = self.rows.shards[i]
        folder = node_cache.folder_of(self.cache, node_cache.ENCODED, shard.sha256)
        with self._alone(i, node_cache.lock_of(self.cache, folder)):
            if not whole(folder):
                self._fill(shard, folder)
            file = os.open(folder / "items.bin", os.O_RDONLY)
            end_N, label_N = np.load(folder / "ends.npy"), np.load(folder / "labels.npy")
        node_cache.used(folder)
        return file, end_N, self._labels(label_N, shard)

    def _fill(self, shard: Shard, folder: Path) -> None:
        items, labels = self.modality.encoded(read_shard(self.storage, shard), self.storage.uri(shard.path))
        end_N = np.cumsum([len(item) for item in items], dtype=np.int64)
        self._labels(labels, shard)  # as they are in the shard: another dataset with it may number its classes otherwise
        write_arrays(folder, {"ends": end_N, "labels": labels.astype(np.int64)}, {"items.bin": items})
        node_cache.trim(self.cache, self.limit, [folder])

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.close()


def shard_arrays(storage: Storage, shard: Shard, rows: Rows, layout: TokenLayout | None, larger: bool) -> dict[str, NDArray[Any]]:
    """The arrays of one shard: ``data``, ``labels``, perhaps ``lengths``, ``captions`` with their ``ends``, and further columns.

    Args:
        larger: leave items that are stored larger than the signal as they are.

    Raises:
        ArtifactError: a damaged shard.
    """
    where, raw, modality = storage.uri(shard.path), read_shard(storage, shard), modalities.kind(rows.modality)
    lengths = None
    if layout is None:
        (data, labels), texts = modality.read(raw, where, None if larger else rows.shape), of_shard(raw)
    else:
        tokens = read_tokens(raw, where, layout)
        data, labels, texts, lengths = tokens.data, tokens.label_N, tokens.captions, tokens.length_N
    if len(data) != shard.rows:
        raise ArtifactError(f"{where}: {len(data)} rows, {shard.rows} are recorded")
    captions = Captions.of(texts)
    arrays = {"data": data, "labels": labels, "captions": captions.flat, "ends": captions.end_N}
    if lengths is not None:
        arrays["lengths"] = lengths
    return arrays | arrays_of(raw, modality)

"""Which rows each step takes, and where they come from: no state, no order to save, flat memory.

B rows of a batch, N rows of a split, C channels.  The data order is a function of
(seed, step); shards are copied once into the node's cache as ``.npy`` files and read through memory maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import seed_of
from tokenloom.models.core.protocols import Batch, Condition, Conditions, Labels, Text, TextFeatures, TokenLayout, Tokens, Values
from tokenloom.tasks import modalities
from tokenloom.tasks.data.arrays import map_array, whole, write_arrays
from tokenloom.tasks.data.captions import Captions, Features, feature_batch, of_shard, text_batch
from tokenloom.tasks.data.columns import arrays_of, values_of
from tokenloom.tasks.data.tokens import read_tokens
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.leases import file_lock
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import read_verified

_FORMAT = 2  # of the node cache; raised when the arrays below change


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
    ``layout`` that of the tokens, None for signals; ``modality`` is the kind of signal.  ``conditions`` are the names of those that
    batches hold; ``encoder`` the frozen text encoder (``FrozenEncoder``'s arguments) where features of texts are among them.
    """

    kind: Literal["signals", "tokens"]
    store: str
    shards: tuple[Shard, ...]
    classes: int
    layout: dict[str, Any] | None = None
    conditions: tuple[str, ...] = (Labels.name,)
    length: int | None = None
    encoder: dict[str, Any] | None = None
    modality: str = "image"

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @classmethod
    def of(cls, notes: Mapping[str, Any], store: str, split: str) -> Rows:
        """The rows of a split, from the notes of a dataset's or tokens' record."""
        shards = tuple(Shard(**{k: s[k] for k in Shard.__dataclass_fields__}) for s in notes["shards"] if s["split"] == split)
        layout = notes.get("layout")
        modality = modalities.kind_of(notes)
        return cls("tokens" if layout else "signals", store, shards, len(notes["classes"]), layout, modality=modality)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rows:
        """Inverse of ``to_dict``."""
        return cls(**{**data, "shards": tuple(Shard(**shard) for shard in data["shards"]), "conditions": tuple(data["conditions"])})


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
        ConfigError: no shards, or a caption that is longer than the model reads.
    """

    def __init__(self, rows: Rows, cache: Path) -> None:
        if not rows.shards:
            raise ConfigError("no shards in this split: check the shares of validation and test, or the data")
        self.rows, self.modality = rows, modalities.kind(rows.modality)
        self.layout = TokenLayout.from_dict(rows.layout) if rows.layout else None
        self._starts = np.cumsum([0, *(shard.rows for shard in rows.shards)])
        storage = Storage(rows.store)
        self._data, self._labels, self._lengths, self._captions, self._features = [], [], [], list[Captions](), list[Features]()
        self._further = [name for name in rows.conditions if name not in (Labels.name, Text.name, TextFeatures.name)]
        self._columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for shard in rows.shards:
            folder = _open(storage, shard, rows, self.layout, Path(cache))
            data, labels = map_array(folder / "data.npy"), np.load(folder / "labels.npy")
            if labels.size and (labels.min() < 0 or labels.max() >= max(1, rows.classes)):
                where = storage.uri(shard.path)
                raise ArtifactError(f"{where}: labels from {labels.min()} to {labels.max()}, there are {rows.classes} classes")
            self._data.append(np.asarray(data))  # a map makes a map of each selection: slow
            self._labels.append(labels)
            self._lengths.append(np.load(folder / "lengths.npy") if (folder / "lengths.npy").exists() else None)
            for name in self._further:
                if not (folder / f"column-{name}.npy").exists():
                    where = storage.uri(shard.path)
                    raise ConfigError(f"{where}: no column {name!r}, which the generator's condition needs; add it to data.columns")
                both = map_array(folder / f"column-{name}.npy"), np.load(folder / f"given-{name}.npy")
                self._columns.setdefault(name, []).append(both)
            if Text.name in rows.conditions:
                self._captions.append(_captions(folder))
            if TextFeatures.name in rows.conditions:
                self._features.append(_features(folder, rows.encoder or {}, Path(cache)))
        self.longest = max((captions.longest for captions in self._captions), default=0)
        if rows.length is not None and self.longest > rows.length:
            raise ConfigError(
                f"a caption of {self.longest} bytes, and the generator takes at most {rows.length}: "
                f"raise its condition's length, or shorten the captions"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def get(self, idx: np.ndarray) -> Batch:
        """The rows at these positions, in this order: the signal float32 (B, C, *shape) or tokens, with their conditions."""
        idx = np.asarray(idx, np.int64)
        data, label_B = self._gather(idx)
        conditions = Conditions({name: self._condition(name, idx, label_B) for name in self.rows.conditions})
        if self.layout is not None:
            return Batch(tokens=Tokens(torch.from_numpy(data), self.layout, self._lengths_of(idx)), conditions=conditions)
        return Batch(signal=self.modality.tensor(data), conditions=conditions)

    def _lengths_of(self, idx: np.ndarray) -> torch.Tensor | None:
        """Valid tokens of these rows (B,), None where no shard is ragged; rows of a shard that is not are full."""
        if all(lengths is None for lengths in self._lengths):
            return None
        assert self.layout is not None
        owner = np.searchsorted(self._starts, idx, side="right") - 1
        at = zip(owner.tolist(), (idx - self._starts[owner]).tolist())
        full = self.layout.length
        return torch.tensor([full if self._lengths[i] is None else int(self._lengths[i][row]) for i, row in at])

    def _condition(self, name: str, idx: np.ndarray, label_B: np.ndarray) -> Condition:
        if name == Labels.name:
            return Labels(torch.from_numpy(label_B.astype(np.int64)))
        if name in self._columns:
            return self.column(name, idx)
        owner = np.searchsorted(self._starts, idx, side="right") - 1
        at = list(zip(owner.tolist(), (idx - self._starts[owner]).tolist()))
        if name == Text.name:
            return text_batch([self._captions[i].bytes(row) for i, row in at], self.longest)
        return feature_batch([(self._features[i], row) for i, row in at])

    def column(self, name: str, idx: np.ndarray) -> Values:
        """A further column of the rows at these positions (of rows that hold this condition)."""
        owner = np.searchsorted(self._starts, idx, side="right") - 1
        at = zip(owner.tolist(), (idx - self._starts[owner]).tolist())
        return values_of([(self._columns[name][i][0][row], bool(self._columns[name][i][1][row])) for i, row in at], self.modality)

    def given(self, name: str) -> np.ndarray:
        """Which rows have that column: (N,) bool."""
        return np.concatenate([given for _, given in self._columns[name]])

    def labels(self) -> np.ndarray:
        """The labels of all rows: (N,) int64."""
        return np.concatenate(self._labels).astype(np.int64)

    def captions(self) -> Iterator[str]:
        """The captions of all rows in order, empty where there is none (of rows that read text)."""
        for captions in self._captions:
            yield from captions.texts()

    def items(self, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The stored items (B, …) and labels int64 (B,), for metrics and pictures."""
        data, label_B = self._gather(np.asarray(idx, np.int64))
        return data, label_B.astype(np.int64)

    def _gather(self, idx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if idx.size and (idx.min() < 0 or idx.max() >= len(self)):
            raise IndexError(f"rows {idx.min()} to {idx.max()} of {len(self)}")
        if len(self._data) == 1:
            return self._data[0][idx], self._labels[0][idx]
        data = np.empty((len(idx), *self._data[0].shape[1:]), self._data[0].dtype)
        label_B = np.empty(len(idx), np.int32)
        owner = np.searchsorted(self._starts, idx, side="right") - 1
        for i in np.unique(owner):
            here = owner == i
            within = idx[here] - self._starts[i]
            data[here], label_B[here] = self._data[i][within], self._labels[i][within]
        return data, label_B


def _open(storage: Storage, shard: Shard, rows: Rows, layout: TokenLayout | None, cache: Path) -> Path:
    """The folder of one shard's arrays in the node cache, which is filled when they are not there or not whole."""
    folder = cache / "rows" / f"{rows.kind}-{_FORMAT}" / f"{shard.sha256[:32]}"
    if not whole(folder):
        with file_lock(cache / "locks" / f"{folder.name}.lock", f"the cached shard {shard.path}"):
            if not whole(folder):
                _fill(storage, shard, rows, layout, folder)
    return folder


def _captions(folder: Path) -> Captions:
    return Captions(map_array(folder / "captions.npy"), np.load(folder / "ends.npy"))


def _features(folder: Path, encoder: dict[str, Any], cache: Path) -> Features:
    """Memory maps of the features of one shard's captions; each encoder's are kept beside the shard's other arrays."""
    from tokenloom.tasks.serving.encoder import FrozenEncoder

    made_by = FrozenEncoder(**encoder)
    inside = folder / f"features-{made_by.digest()[:16]}"
    if not whole(inside):
        with file_lock(cache / "locks" / f"{folder.name}-{inside.name}.lock", f"the features of the captions of {folder.name}"):
            if not whole(inside):
                write_arrays(inside, vars(Features.of(_captions(folder).texts(), made_by)))
    return Features(map_array(inside / "feature_UTF.npy"), np.load(inside / "pieces_U.npy"), np.load(inside / "caption_N.npy"))


def read_shard(storage: Storage, shard: Shard) -> bytes:
    """A shard's bytes, size and hash verified.

    Raises:
        ArtifactError: missing, cut short or changed, naming the path.
    """
    size = storage.size(shard.path)
    if size is not None and size != shard.size:
        where = storage.uri(shard.path)
        raise ArtifactError(f"{where}: {size} bytes, {shard.size} are recorded: the shard is cut short; run again to make it anew")
    return read_verified(storage, shard.path, shard.sha256)


def _fill(storage: Storage, shard: Shard, rows: Rows, layout: TokenLayout | None, folder: Path) -> None:
    where, raw = storage.uri(shard.path), read_shard(storage, shard)
    lengths = None
    if layout is None:
        (data, labels), texts = modalities.kind(rows.modality).read(raw, where), of_shard(raw)
    else:
        tokens = read_tokens(raw, where, layout)
        data, labels, texts, lengths = tokens.data, tokens.label_N, tokens.captions, tokens.length_N
    if len(data) != shard.rows:
        raise ArtifactError(f"{where}: {len(data)} rows, {shard.rows} are recorded")
    captions = Captions.of(texts)
    arrays = {"data": data, "labels": labels.astype(np.int32), "captions": captions.flat, "ends": captions.end_N}
    if lengths is not None:
        arrays["lengths"] = lengths
    arrays |= arrays_of(raw, modalities.kind(rows.modality))
    write_arrays(folder, arrays)

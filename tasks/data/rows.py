"""The rows of one split as plain data, and the verified bytes of their shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.protocols import Labels
from tokenloom.tasks import modalities
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import read_verified


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split; ``path`` is relative to the store."""

    path: str
    split: str
    rows: int
    sha256: str
    size: int
    numbering: int | None = None  # which of ``Rows.numberings`` its labels follow, if they are not the dataset's own

    @classmethod
    def of(cls, noted: Mapping[str, Any]) -> Shard:
        """A shard as a record notes it, among other things."""
        return cls(**{name: noted[name] for name in cls.__dataclass_fields__ if name in noted})


@dataclass(frozen=True)
class Rows:
    """The rows of one split, as plain data that can travel to a worker.

    ``store`` is the store's absolute address; ``classes`` the number of classes (0 without labels);
    ``layout`` that of the tokens, None for signals; ``modality`` is the kind of signal.  ``conditions`` are the names of those that
    batches hold; ``encoder`` the frozen text encoder (``FrozenEncoder``'s arguments) where features of texts are among them.
    ``shape`` is that of a signal's item, e.g. rows and columns; stored items may be larger; None: it is as stored.
    ``numberings`` are of classes in shards of an earlier dataset: the number now of each number then, -1 of a class that is gone.
    ``order`` says in which order the rows are, whatever shards they lie in (``tokenloom.tasks.data.placing``); None: as they lie.
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
    shape: tuple[int, ...] | None = None
    numberings: tuple[tuple[int, ...], ...] = ()
    order: dict[str, Any] | None = None

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @classmethod
    def of(cls, notes: Mapping[str, Any], store: str, *splits: str) -> Rows:
        """The rows of some splits, one split after the other, from the notes of a dataset's or tokens' record."""
        shards = tuple(Shard.of(s) for split in splits for s in notes["shards"] if s["split"] == split)
        layout = notes.get("layout")
        shape = tuple(modalities.signal_of(notes)["shape"]) if not layout and ("signal" in notes or "size" in notes) else None
        kind: Literal["signals", "tokens"] = "tokens" if layout else "signals"
        numberings = tuple(tuple(numbers) for numbers in notes.get("numberings", ()))
        given = kind, store, shards, len(notes["classes"]), layout
        order = _order(notes["order"], shards, splits) if "order" in notes else None
        return cls(*given, modality=modalities.kind_of(notes), shape=shape, numberings=numberings, order=order)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rows:
        """Inverse of ``to_dict``."""
        shape = data.get("shape")
        lists: dict[str, Any] = {"conditions": tuple(data["conditions"]), "shape": None if shape is None else tuple(shape)}
        lists["numberings"] = tuple(tuple(numbers) for numbers in data.get("numberings", ()))
        return cls(**{**data, "shards": tuple(Shard(**shard) for shard in data["shards"]), **lists})

    def labels(self, shard: Shard, number_N: NDArray[Any], where: str) -> NDArray[np.int64]:
        """Class numbers (N,) of the numbers in a shard.

        Raises:
            ArtifactError: a number without a class.
        """
        label_N, most = number_N.astype(np.int64), self.classes
        if shard.numbering is not None and number_N.size:
            now = np.array(self.numberings[shard.numbering], np.int64)
            most = len(now)
            label_N = now[np.clip(label_N, 0, most - 1)]
        if number_N.size and (number_N.min() < 0 or number_N.max() >= max(1, most) or label_N.min() < 0):
            raise ArtifactError(f"{where}: labels from {number_N.min()} to {number_N.max()}, there are {most} classes")
        return label_N


def _order(noted: Mapping[str, Any], shards: tuple[Shard, ...], splits: tuple[str, ...]) -> dict[str, Any]:
    """The order of the rows of some splits, one split after the other, from what a record notes of it."""
    found = []
    for split in splits:
        if items := noted["items"].get(split, 0):
            views = sum(shard.rows for shard in shards if shard.split == split) // items
            parts = noted.get("parts", {}).get(split)
            found.append({"items": items, "views": views, "file": noted.get("files", {}).get(split), "parts": parts})
    return {"block": noted["block"], "splits": found, "weights": noted.get("weights")}


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

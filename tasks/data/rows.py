"""The rows of one split as plain data, and the verified bytes of their shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class Rows:
    """The rows of one split, as plain data that can travel to a worker.

    ``store`` is the store's absolute address; ``classes`` the number of classes (0 without labels);
    ``layout`` that of the tokens, None for signals; ``modality`` is the kind of signal.  ``conditions`` are the names of those that
    batches hold; ``encoder`` the frozen text encoder (``FrozenEncoder``'s arguments) where features of texts are among them.
    ``shape`` is that of a signal's item, e.g. rows and columns; stored items may be larger; None: it is as stored.
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

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @classmethod
    def of(cls, notes: Mapping[str, Any], store: str, *splits: str) -> Rows:
        """The rows of some splits, one split after the other, from the notes of a dataset's or tokens' record."""
        fields = Shard.__dataclass_fields__
        shards = tuple(Shard(**{k: s[k] for k in fields}) for split in splits for s in notes["shards"] if s["split"] == split)
        layout = notes.get("layout")
        shape = tuple(modalities.signal_of(notes)["shape"]) if not layout and ("signal" in notes or "size" in notes) else None
        kind: Literal["signals", "tokens"] = "tokens" if layout else "signals"
        return cls(kind, store, shards, len(notes["classes"]), layout, modality=modalities.kind_of(notes), shape=shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rows:
        """Inverse of ``to_dict``."""
        shape = data.get("shape")
        lists = {"conditions": tuple(data["conditions"]), "shape": None if shape is None else tuple(shape)}
        return cls(**{**data, "shards": tuple(Shard(**shard) for shard in data["shards"]), **lists})


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

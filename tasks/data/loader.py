"""Batches of rows: random access to the items of a split on this node, with their conditions.

B rows of a batch, N rows of a split.  The data order is a function of (seed, step) (``order``); how items are held is that of ``held``:
tokens, and signals that are small, decoded in one array; signals that are large as encoded bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.augmentation import Augmentation
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, Labels, Text, TextFeatures, TokenLayout, Tokens, Values
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks import modalities
from tokenloom.tasks.data.arrays import map_array, whole, write_arrays
from tokenloom.tasks.data.captions import Captions, Features, feature_batch, text_batch
from tokenloom.tasks.data.columns import values_of
from tokenloom.tasks.data.held import Encoded, Flat, Held
from tokenloom.tasks.data.order import indices as indices
from tokenloom.tasks.data.order import share as share
from tokenloom.tasks.data.placing import places, stretches
from tokenloom.tasks.data.rows import Rows as Rows
from tokenloom.tasks.data.rows import Shard as Shard
from tokenloom.tasks.data.rows import read_shard as read_shard
from tokenloom.tasks.runtime.errors import MixedSizesError
from tokenloom.tasks.store.leases import file_lock

GB = 1e9


class Loader:
    """Random access to the rows of a split.

    Args:
        rows: what to read.
        cache: the node's cache folder; each shard comes into it once, whichever of the node's processes is first.
        execution: how large the cache may be, what is kept decoded, and how many threads decode.
        augmentation: how ``get`` varies items, if it is given draws.
        lazy: bring a shard when it is asked for, instead of all of them now.

    Raises:
        ArtifactError: a shard is missing, cut short, has the wrong hash, or holds values out of range.
        ConfigError: no shards, a caption that is longer than the model reads, or an augmentation that the data cannot have.
    """

    def __init__(
        self,
        rows: Rows,
        cache: Path,
        execution: ExecutionSettings | None = None,
        augmentation: Augmentation | None = None,
        lazy: bool = False,
    ) -> None:
        if not rows.shards:
            raise ConfigError("no shards in this split: check the shares of validation and test, or the data")
        self.rows, self.modality, self.cache = rows, modalities.kind(rows.modality), Path(cache)
        self.execution = execution or ExecutionSettings()
        self.augmentation = augmentation if augmentation is not None and augmentation.changes else None
        self.layout = TokenLayout.from_dict(rows.layout) if rows.layout else None
        self._further = [name for name in rows.conditions if name not in (Labels.name, Text.name, TextFeatures.name)]
        if self.augmentation is not None:
            check_augmentation(rows)
        self._pool: ThreadPoolExecutor | None = None
        self._rows = len(rows)
        self.held = self._held()
        self._place = places(rows.order, [shard.rows for shard in rows.shards], self.held.storage) if rows.order else None
        self._stretches = stretches(rows.order) if rows.order and len(rows.order["splits"]) == 1 else []
        self._ragged, self.longest = False, 0
        self._captions, self._features = list[Captions](), list[Features]()
        self._columns: dict[str, list[tuple[NDArray[Any], NDArray[np.bool_]]]] = {}
        if not lazy or self.layout is not None or rows.conditions != (Labels.name,):
            self.bring(range(len(rows.shards)))
            self._read_beside()

    def _held(self) -> Held:
        rows, limit = self.rows, self.execution.cache_gb * GB
        crops = self.augmentation is not None and self.augmentation.crop is not None
        size = 3 * len(rows) * math.prod(rows.shape or ())
        large = rows.shape is not None and size > self.execution.decoded_gb * GB
        if self.modality.encodes and self.layout is None and rows.conditions == (Labels.name,) and large:
            return Encoded(rows, self.cache, limit)
        return Flat(rows, self.cache, limit, self.layout, larger=crops)

    @property
    def works(self) -> bool:
        """Whether a batch takes more than a gather, so that it is better made ahead of the step."""
        return not self.held.complete or self.augmentation is not None

    @property
    def fits(self) -> bool:
        """Whether the node's cache has room for the whole split."""
        return isinstance(self.held, Flat) or sum(shard.size for shard in self.rows.shards) <= self.held.limit

    def bring(self, shards: Sequence[int]) -> None:
        """See that shards are on the node, several at a time."""
        try:
            if missing := [i for i in shards if not (isinstance(self.held, Flat) and self.held.done[i])]:
                for _ in self.pool.map(lambda i: self.held.bring([i]), missing) if len(missing) > 1 else [self.held.bring(missing)]:
                    pass
        except MixedSizesError:
            if self.layout is not None or self.rows.shape is None or self.rows.conditions != (Labels.name,) or not self.modality.encodes:
                raise
            self.held = Encoded(self.rows, self.cache, self.execution.cache_gb * GB)

    @property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that decode."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.execution.decoders, thread_name_prefix="decode")
        return self._pool

    def _read_beside(self) -> None:
        """What stands beside the items of all shards: lengths, captions, features of them, columns."""
        rows, held = self.rows, self.held
        if not isinstance(held, Flat):
            return
        self._ragged = held.ragged
        for i, shard in enumerate(rows.shards):
            for name in self._further:
                path = held.beside(i) / f"column-{name}.npy"
                if not path.exists():
                    where = held.storage.uri(shard.path)
                    raise ConfigError(f"{where}: no column {name!r}, which the generator's condition needs; add it to data.columns")
                self._columns.setdefault(name, []).append((map_array(path), np.load(held.beside(i) / f"given-{name}.npy")))
            if Text.name in rows.conditions:
                self._captions.append(held.captions(i))
            if TextFeatures.name in rows.conditions:
                self._features.append(_features(held.captions(i), held.beside(i), rows.encoder or {}, self.cache))
        self.longest = max((captions.longest for captions in self._captions), default=0)
        if rows.length is not None and self.longest > rows.length:
            raise ConfigError(
                f"a caption of {self.longest} bytes, and the generator takes at most {rows.length}: "
                f"raise its condition's length, or shorten the captions"
            )

    def __len__(self) -> int:
        return self._rows

    def indices(self, seed: int, step: int, batch: int, window: int = 0) -> NDArray[np.int64]:
        """Rows of the global batch of a step (``order.indices``)."""
        shards = [shard.rows for shard in self.rows.shards] if window else ()
        return indices(seed, step, batch, len(self), shards, window, self._stretches)

    def shards_of(self, idx: NDArray[np.int64]) -> list[int]:
        """The shards in which these rows lie."""
        return np.unique(self.held.owner(self._lying(idx))).tolist()

    def _lying(self, idx: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the shards, one after the other, that rows in order are."""
        return idx if self._place is None else self._place[idx]

    def get(self, idx: NDArray[np.int64], draws: Draws | None = None) -> Batch:
        """The rows at these positions, in this order: the signal float32 (B, C, *shape) or tokens, with their conditions.

        Items are varied where there are ``draws`` and an augmentation.
        """
        batch = self.stored(idx, draws)
        return batch if batch.signal is None else self.as_signal(batch)

    def as_signal(self, batch: Batch) -> Batch:
        """A batch of stored items with the signal that they stand for, on the device where they are."""
        assert batch.signal is not None
        return Batch(self.modality.tensor(batch.signal), batch.tokens, batch.conditions)

    def stored(self, idx: NDArray[np.int64], draws: Draws | None = None) -> Batch:
        """The same with items as they are stored (B, *shape, C), which are a quarter of the signal's size."""
        idx = np.ascontiguousarray(idx, np.int64)
        data, label_B = self._gather(idx, draws)
        conditions = Conditions({name: self._condition(name, idx, label_B) for name in self.rows.conditions})
        if self.layout is not None:
            lengths = torch.from_numpy(self._flat.lengths(self._lying(idx)).astype(np.int64)) if self._ragged else None
            return Batch(tokens=Tokens(torch.from_numpy(data), self.layout, lengths), conditions=conditions)
        return Batch(signal=torch.from_numpy(data), conditions=conditions)

    @property
    def _flat(self) -> Flat:
        assert isinstance(self.held, Flat), "tokens and conditions are held in arrays"
        return self.held

    def _condition(self, name: str, idx: NDArray[np.int64], label_B: NDArray[np.int64]) -> Condition:
        if name == Labels.name:
            return Labels(torch.from_numpy(label_B))
        if name in self._columns:
            return self.column(name, idx)
        at = self._at(idx)
        if name == Text.name:
            return text_batch([self._captions[i].bytes(row) for i, row in at], self.longest)
        return feature_batch([(self._features[i], row) for i, row in at], (self.rows.encoder or {}).get("padding", "right"))

    def _at(self, idx: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The shard of each row, and its place there."""
        idx = self._lying(idx)
        owner = self.held.owner(idx)
        return list(zip(owner.tolist(), (idx - self.held.starts[owner]).tolist()))

    def column(self, name: str, idx: NDArray[np.int64]) -> Values:
        """A further column of the rows at these positions (of rows that hold this condition)."""
        columns = self._columns[name]
        return values_of([(columns[i][0][row], bool(columns[i][1][row])) for i, row in self._at(idx)], self.modality)

    def given(self, name: str) -> NDArray[np.bool_]:
        """Which rows have that column: (N,)."""
        given_N: NDArray[np.bool_] = np.concatenate([given for _, given in self._columns[name]])
        return given_N if self._place is None else given_N[self._place]

    def labels(self) -> NDArray[np.int64]:
        """The labels of all rows: (N,) (of rows that hold more conditions)."""
        return self._flat.labels if self._place is None else self._flat.labels[self._place]

    def captions(self) -> Iterator[str]:
        """The captions of all rows in order, empty where there is none (of rows that read text)."""
        if self._place is None:
            for captions in self._captions:
                yield from captions.texts()
        else:
            yield from (self._captions[i].bytes(row).decode() for i, row in self._at(np.arange(len(self))))

    def items(self, idx: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The stored items (B, …) and labels int64 (B,), for metrics and pictures."""
        data, label_B = self._gather(np.ascontiguousarray(idx, np.int64), None)
        return data, label_B

    def _gather(self, idx: NDArray[np.int64], draws: Draws | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if idx.size and int(idx.view(np.uint64).max()) >= len(self):  # a negative one is very large
            raise IndexError(f"rows {idx.min()} to {idx.max()} of {len(self)}")
        idx = self._lying(idx)
        if not self.held.complete:
            self.bring(np.unique(self.held.owner(idx)).tolist())
        stored, label_B = self.held.gather(idx)
        if self.layout is not None:
            return np.asarray(stored), label_B
        varied = self.augmentation if draws is not None else None
        u_BN = draws.uniform(self.modality.draws).numpy() if draws is not None and varied is not None else None
        return self.modality.items(stored, self.rows.shape, varied, u_BN, self.pool), label_B


def check_augmentation(rows: Rows) -> None:
    """Refuse an augmentation of what cannot be varied.

    Raises:
        ConfigError: tokens, a kind of signal without augmentations, or conditions that would no longer belong to their items.
    """
    if rows.kind == "tokens":
        raise ConfigError("train.augment: a generator reads tokens, which are made before it trains; extract.views has their forms")
    if not modalities.kind(rows.modality).draws:
        raise ConfigError(f"train.augment: items of kind {rows.modality} are not varied; leave it out")
    if further := [name for name in rows.conditions if name not in (Labels.name, Text.name, TextFeatures.name)]:
        raise ConfigError(f"train.augment: the condition {further[0]!r} would no longer belong to its item; leave augment out")


def _features(captions: Captions, folder: Path, encoder: dict[str, Any], cache: Path) -> Features:
    """Memory maps of the features of one shard's captions; each encoder's are kept beside the shard's other arrays."""
    from tokenloom.tasks.serving.encoder import FrozenEncoder

    made_by = FrozenEncoder(**encoder)
    inside = folder / f"features-{made_by.digest()[:16]}"
    if not whole(inside):
        named = f"{folder.parent.name}-{folder.name}"
        with file_lock(cache / "locks" / f"{named}-{inside.name}.lock", f"the features of the captions of {named}"):
            if not whole(inside):
                write_arrays(inside, vars(Features.of(captions.texts(), made_by)))
    return Features(map_array(inside / "feature_UTF.npy"), np.load(inside / "pieces_U.npy"), np.load(inside / "caption_N.npy"))

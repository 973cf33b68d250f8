"""The order of a dataset's items, whatever shards they came in, and where the rows of a split lie in that order.

N items of a split, R rows: an item has a row for each of its views.  The order is a function of what the fingerprint covers: the parts of
a blend one after the other, and within a part either the order of the keys, or classes in turn (of single files, so that a stretch of
shards holds all classes).  A dataset that was ingested at once lies in its shards in this order; of one that grew, a table says
for each place of the order in which row of the shards it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenloom.tasks.data.order import Stretch
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import read_verified


def arranged(keys: Sequence[str], labels: Sequence[str | None], parts: Sequence[tuple[str, bool]]) -> list[int]:
    """The numbers of items in their order.

    Args:
        keys: of the items; those of a blend begin with the name of their part.
        labels: the class names.
        parts: (name, whether classes take turns) of each part; one without a name holds all items.
    """
    numbers = {name: number for number, (name, _) in enumerate(parts)}
    counts: Counter[tuple[int, str]] = Counter()
    placed = list[tuple[int, int, str, str, int]]()
    for i in sorted(range(len(keys)), key=keys.__getitem__):
        part = 0 if "" in numbers else numbers[keys[i].partition("/")[0]]
        label = labels[i] or ""
        turn = counts[part, label] if parts[part][1] else 0
        counts[part, label] += 1
        placed.append((part, turn, label if parts[part][1] else "", keys[i], i))
    return [each[-1] for each in sorted(placed)]


def note(rows: Iterable[Mapping[str, Any]], parts: Sequence[tuple[str, bool]], block: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a record notes of the order of its items, given as they lie in the shards, and the tables of splits that lie otherwise."""
    by_split: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_split[row["split"]].append(row)
    noted: dict[str, Any] = {"block": block, "items": {}}
    tables = {}
    for split, mine in by_split.items():
        place = arranged([row["key"] for row in mine], [row["label"] for row in mine], parts)
        noted["items"][split] = len(mine)
        if len(parts) > 1:
            counts = Counter(row["key"].partition("/")[0] for row in mine)
            noted.setdefault("parts", {})[split] = [counts[name] for name, _ in parts]
        if place != list(range(len(mine))):
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"row": pa.array(place, pa.int64())}), sink, compression="zstd", write_statistics=False)
            tables[split] = sink.getvalue().to_pybytes()
    return noted, tables


def stretches(order: Mapping[str, Any]) -> list[Stretch]:
    """The stretches of the rows of one split that are drawn from on their own: one, or one for each part of a blend."""
    (split,) = order["splits"]
    counts, block = split["parts"] or [split["items"]], order["block"]
    weights = order["weights"] or [1.0] * len(counts)
    return [
        Stretch(n * split["views"], tuple(_blocks(n, block) * split["views"]), weight) for n, weight in zip(counts, weights, strict=True)
    ]


def _blocks(items: int, block: int) -> list[int]:
    return [min(block, items - start) for start in range(0, items, block)]


def places(order: Mapping[str, Any], shards: Sequence[int], storage: Storage) -> NDArray[np.int64] | None:
    """The row of the shards of each row in order: (R,); None where both are the same.

    Args:
        order: of some splits, one after the other.
        shards: rows of each shard, those of an item's views after another within it.

    Raises:
        ArtifactError: a table that is missing or damaged.
    """
    if all(split["views"] == 1 and not split["file"] for split in order["splits"]):
        return None
    found, first = list[NDArray[np.int64]](), 0
    for split in order["splits"]:
        items, views, mine, begin = split["items"], split["views"], list[int](), sum(shards[:first])
        while sum(mine) < items * views:
            mine.append(shards[first + len(mine)])
        first += len(mine)
        rows_S = np.asarray(mine, np.int64) // views
        start_S = np.cumsum([0, *rows_S])
        place_N = _read(split["file"], storage) if split["file"] else np.arange(items, dtype=np.int64)
        owner_N = np.searchsorted(start_S, place_N, side="right") - 1
        plain_N = begin + views * start_S[owner_N] + place_N - start_S[owner_N]
        at = 0
        for count in split["parts"] or [items]:
            found += [plain_N[at : at + count] + view * rows_S[owner_N[at : at + count]] for view in range(views)]
            at += count
    return np.concatenate(found) if found else None


def _read(file: Mapping[str, Any], storage: Storage) -> NDArray[np.int64]:
    table = pq.ParquetFile(pa.BufferReader(read_verified(storage, file["path"], file["sha256"]))).read()
    return np.asarray(table["row"].to_numpy(), np.int64)

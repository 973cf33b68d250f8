"""Sets a source against the datasets that the store has: what stays, what is new, what must be made again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.configs.schema import DataConfig, identity
from tokenloom.tasks.data.listing import Entry, Item, Source, natural, shown, split_of
from tokenloom.tasks.data.placing import arranged
from tokenloom.tasks.data.reading import ReadError
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.sources.far import Far
from tokenloom.tasks.store.artifacts import Record, Store, canonical_json, sha256_of
from tokenloom.tasks.store.verification import read_verified

VERSION = 3  # of the step ingest: raised when its code changes what it makes
#: Versions whose datasets are still read. Those of the first are named by their shards, not by their items; rows of the first two are in
#: the order of their shards.
READ = (1, 2, VERSION)
SPLITS = ("train", "validation", "test")
_OF_THE_SYSTEM = "[Errno "  # how a reason began, before those that may pass were told apart


@dataclass
class Unit:
    """The items that make one shard."""

    split: str
    items: list[tuple[Entry, Item]]

    def key(self, config: DataConfig, classes: list[str]) -> str:
        stamps = [(self.split, item.key, entry.size, entry.mtime, entry.ctime, entry.stamp) for entry, item in self.items]
        return sha256_of(canonical_json([VERSION, without_weights(identity(config)), classes, stamps]))[:24]


@dataclass
class Matched:
    """What stays of an earlier dataset and what is made anew; ``classes`` in the one order that class names have."""

    source: Source
    classes: list[str]
    base: Record | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # shards
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of kept shards, by path; labels are names
    known: dict[str, dict[str, Any]] = field(default_factory=dict)  # unchanged entries: name -> row of the entries table
    rejects: list[dict[str, Any]] = field(default_factory=list)  # of unchanged entries
    fresh: list[Entry] = field(default_factory=list)
    again: dict[str, set[str]] = field(default_factory=dict)  # unchanged entries: places of items that could not be read
    lost: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)  # (split, rows) of shards to make again
    reason: str = ""


def split_in(item: Item, config: DataConfig) -> str:
    """The split that an item's source gives it; else that of its key."""
    return item.split or split_of(item.key, config)


def read_table(store: Store, record: Record, name: str) -> list[dict[str, Any]]:
    """Rows of a Parquet table of a dataset; ``ArtifactError`` when it is missing or damaged."""
    path = f"{record.artifact.folder}/{name}"
    try:
        known = {file["path"]: file["sha256"] for file in record.files}
        return list(pq.ParquetFile(pa.BufferReader(read_verified(store.storage, path, known[path]))).read().to_pylist())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtifactError(f"{store.storage.uri(path)}: {error}") from error


def read_items(store: Store, record: Record) -> list[dict[str, Any]]:
    """The items of a dataset, each with the name of its class as ``label``."""
    classes = record.notes["classes"]
    return [{**row, "label": classes[row["label"]]} for row in read_table(store, record, "items.parquet")]


def numbering_of(notes: dict[str, Any], shard: dict[str, Any]) -> list[str | None]:
    """Class names of the numbers in a shard's file; None of a class that the dataset no longer has."""
    classes: list[str] = notes["classes"]
    if shard.get("numbering") is None:
        return list(classes)
    return [None if number < 0 else classes[number] for number in notes["numberings"][shard["numbering"]]]


def match(source: Source, config: DataConfig, store: Store) -> Matched:
    """Set the source against the datasets of the same configuration, the newest first; an exact one ends the search."""
    wanted = identity(config)
    same_data = without_weights(wanted)
    digests: dict[str, str] = {}
    best: Matched | None = None
    for record in reversed(store.records("dataset")):
        if without_weights(record.config["data"]) == same_data and record.version in READ:
            try:
                plan = _against(record, source, store, digests)
            except ArtifactError:
                continue
            if record.config["data"] != wanted:
                plan.reason = ", ".join([*([plan.reason] if plan.reason else []), f"other weights than {record.artifact.id}"])
            if not plan.reason:
                return plan
            best = best or plan
    if best is None or config.limit is not None:
        # With a limit, one file more may push another one out: the whole is made anew.
        reason = "no dataset of this source yet" if best is None else best.reason
        return Matched(source, sorted(source.classes, key=natural), fresh=list(source.entries), reason=reason)
    return best


def without_weights(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the weights of a blend, which change no item."""
    parts = data.get("blend") or {}
    return {**data, "blend": {name: {**part, "weight": None} for name, part in parts.items()}} if parts else data


def digest_of(source: Source, entry: Entry) -> str:
    """Hash of an entry's content, empty where it cannot be read now."""
    try:
        return source.digest(entry)
    except ReadError:
        return ""


def settled(entry: Entry) -> bool:
    """Whether what was listed of an entry names its content, so that it need not be read for a hash: files elsewhere, not just written."""
    return isinstance(entry.path, Far) and not entry.path.recent


def _known(entry: Entry, row: dict[str, Any] | None, source: Source, digests: dict[str, str]) -> dict[str, Any] | None:
    """The row of an entry whose content is as it was; tables of earlier versions hold neither ``ctime`` nor ``stamp``."""
    if row is None:
        return None
    now = {"size": entry.size, "mtime": entry.mtime, "ctime": entry.ctime, "stamp": entry.stamp}
    old = {**now, **{name: row[name] for name in now if row.get(name) is not None}}
    if row.get("stamp") is None:
        old["stamp"] = ""  # what a source depends on beside its files was not looked at
    if old == now:
        return row
    if not row["sha256"]:
        return None
    if entry.name not in digests:
        digests[entry.name] = digest_of(source, entry)
    same = digests[entry.name] and digests[entry.name] == row["sha256"]
    return {**row, **now} if same else None


def _against(record: Record, source: Source, store: Store, digests: dict[str, str]) -> Matched:
    """What one earlier dataset has of the source."""
    entries = {row["entry"]: row for row in read_table(store, record, "entries.parquet")}
    plan = Matched(source, [], base=record)
    for entry in source.entries:
        row = _known(entry, entries.get(entry.name), source, digests)
        if row is None:
            plan.fresh.append(entry)
        else:
            plan.known[entry.name] = row
    for row in read_table(store, record, "quarantine.parquet"):
        if row["entry"] in plan.known:
            if row.get("retry") or row["reason"].startswith(_OF_THE_SYSTEM):
                plan.again.setdefault(row["entry"], set()).add(row["source"])
            else:
                plan.rejects.append(row)
    items = read_items(store, record)
    missing, tables = _shards(plan, record, items, store)
    kept = {row["label"] for rows in plan.rows.values() for row in rows}
    plan.classes = sorted({*source.classes, *kept}, key=natural)
    present = {entry.name for entry in source.entries}
    changed = sum(entry.name in entries for entry in plan.fresh)
    removed = sum(name not in present for name in entries)
    gone = len(record.notes["classes"]) - len({row["label"] for row in items})
    counts = {"new": len(plan.fresh) - changed, "changed": changed, "removed": removed}
    parts = [_counted(n, f"{what} file") for what, n in counts.items() if n]
    unread = sum(len(places) for places in plan.again.values())
    parts += [f"{_counted(unread, 'item')} that could not be read"] if unread else []
    parts += ["its tables are damaged"] if tables else []
    parts += [f"{_counted(missing, 'shard')} missing or cut short"] if missing else []
    parts += [f"{_counted(gone, 'class', 'classes')} without an item"] if gone else []
    plan.reason = f"{', '.join(parts)} (against {record.artifact.id})" if parts else ""
    return plan


def _shards(plan: Matched, record: Record, items: list[dict[str, Any]], store: Store) -> tuple[int, bool]:
    """Sort the shards of a dataset into kept and lost ones; how many are missing, and whether its tables are damaged."""
    sizes = store.storage.sizes([file["path"] for file in record.files])
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in items:
        rows[row["shard"]].append(row)
    missing = 0
    for shard in record.notes["shards"]:
        mine = rows[shard["path"]]
        gone = sizes[shard["path"]] != shard["size"]
        missing += gone
        if not gone and all(row["entry"] in plan.known for row in mine):
            plan.kept.append(shard)
            plan.rows[shard["path"]] = mine
        else:
            plan.lost.append((shard["split"], mine))
    folder = record.artifact.folder
    tables = [f for f in record.files if f["path"].startswith(f"{folder}/") and f["path"].count("/") == 2]
    tables += record.notes.get("order", {}).get("files", {}).values()
    return missing, any(sizes[f["path"]] != f["size"] for f in tables)


def _counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def units_of(plan: Matched, config: DataConfig) -> Iterator[Unit]:
    """The shards to make: lost ones from the same items as before, then new ones."""
    by_name = {entry.name: entry for entry in plan.source.entries}
    taken = {row["key"] for rows in plan.rows.values() for row in rows}
    if plan.lost:
        needed = {row["entry"] for _, rows in plan.lost for row in rows} & set(by_name)
        items = {item.key: (by_name[name], item) for name in sorted(needed) for item in plan.source.items(by_name[name])}
        for split, rows in plan.lost:
            # A file that grew may have moved the border between two splits over an item.
            again = [items[row["key"]] for row in rows if row["key"] in items and split_in(items[row["key"]][1], config) == split]
            taken |= {item.key for _, item in again}
            if again:
                yield Unit(split, again)
    fresh: dict[str, list[tuple[Entry, Item]]] = {split: [] for split in SPLITS}
    for entry, item in _new_items(plan, config, taken):
        fresh[split_in(item, config)].append((entry, item))
    for split, pairs in fresh.items():
        order = arranged([item.key for _, item in pairs], [item.label for _, item in pairs], plan.source.parts)
        for start in range(0, len(order), config.shard_rows):
            yield Unit(split, [pairs[i] for i in order[start : start + config.shard_rows]])


def _new_items(plan: Matched, config: DataConfig, taken: set[str]) -> Iterator[tuple[Entry, Item]]:
    """Items that no shard has yet, at most ``data.limit`` of them, and those that could not be read."""
    seen = 0
    for entry in plan.fresh:
        for item in plan.source.items(entry):
            if item.key in taken:
                continue
            if config.limit is not None and seen >= config.limit:
                break
            seen += 1
            yield entry, item
    for entry in plan.source.entries:
        if entry.name in plan.again:
            for item in plan.source.items(entry):
                if item.key not in taken and shown(entry, item) in plan.again[entry.name]:
                    yield entry, item

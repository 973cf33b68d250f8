"""Sets a source against the datasets that the store has: what stays, what is new, what must be made again."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.configs.schema import DataConfig, identity
from tokenloom.tasks.data.listing import Entry, Item, Source
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Record, Store, canonical_json, sha256_of
from tokenloom.tasks.store.verification import read_verified

VERSION = 1  # of the step ingest: raised when its code changes what it makes
SPLITS = ("train", "validation", "test")


@dataclass
class Unit:
    """The items that make one shard."""

    split: str
    items: list[tuple[Entry, Item]]

    def key(self, config: DataConfig, classes: list[str]) -> str:
        stamps = [(self.split, item.key, entry.size, entry.mtime) for entry, item in self.items]
        return sha256_of(canonical_json([VERSION, identity(config), classes, stamps]))[:24]


@dataclass
class Matched:
    """What stays of an earlier dataset and what is made anew."""

    source: Source
    classes: list[str]
    base: Record | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)  # shards
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of kept shards, by path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)  # unchanged entries: name -> row of the entries table
    rejects: list[dict[str, str]] = field(default_factory=list)  # of unchanged entries
    fresh: list[Entry] = field(default_factory=list)
    lost: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)  # (split, rows) of shards to make again
    reason: str = ""


def split_of(key: str, config: DataConfig) -> str:
    """The split of an item: a keyed hash of its key, whatever else there is."""
    point = int.from_bytes(hashlib.sha256(f"{config.seed}\x1f{key}".encode()).digest()[:8], "big") / 2.0**64
    return "test" if point < config.test else "validation" if point < config.test + config.validation else "train"


def read_table(store: Store, record: Record, name: str) -> list[dict[str, Any]]:
    """Rows of a Parquet table of a dataset; ``ArtifactError`` when it is missing or damaged."""
    path = f"{record.artifact.folder}/{name}"
    try:
        known = {file["path"]: file["sha256"] for file in record.files}
        return list(pq.ParquetFile(pa.BufferReader(read_verified(store.storage, path, known[path]))).read().to_pylist())
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ArtifactError(f"{store.storage.uri(path)}: {error}") from error


def match(source: Source, config: DataConfig, store: Store) -> Matched:
    """Set the source against the datasets of the same configuration, the newest first; an exact one ends the search."""
    wanted = identity(config)
    digests: dict[str, str] = {}
    best: Matched | None = None
    for record in reversed(store.records("dataset")):
        if record.config["data"] == wanted and record.version == VERSION:
            try:
                plan = _against(record, source, store, digests)
            except ArtifactError:
                continue
            if not plan.reason:
                return plan
            best = best or plan
    if best is None or config.limit is not None:
        # With a limit, one file more may push another one out: the whole is made anew.
        reason = "no dataset of this source yet" if best is None else best.reason
        return Matched(source, list(source.classes), fresh=list(source.entries), reason=reason)
    return best


def _against(record: Record, source: Source, store: Store, digests: dict[str, str]) -> Matched:
    """What one earlier dataset has of the source."""
    folder = record.artifact.folder
    entries = {row["entry"]: row for row in read_table(store, record, "entries.parquet")}
    # Labels of known shards stay right: old classes keep their numbers, new ones follow.
    old = list(record.notes["classes"])
    plan = Matched(source, old + [name for name in source.classes if name not in old], base=record)
    for entry in source.entries:
        row = entries.get(entry.name)
        if row is not None and (row["size"], row["mtime"]) != (entry.size, entry.mtime):
            digest = digests.get(entry.name) or digests.setdefault(entry.name, source.digest(entry))
            row = {**row, "size": entry.size, "mtime": entry.mtime} if digest == row["sha256"] else None
        if row is None:
            plan.fresh.append(entry)
        else:
            plan.known[entry.name] = row
    present = {entry.name for entry in source.entries}
    changed = [e.name for e in plan.fresh if e.name in entries]
    removed = [name for name in entries if name not in present]
    sizes = store.storage.sizes([file["path"] for file in record.files])
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_table(store, record, "items.parquet"):
        rows[row["shard"]].append(row)
    missing = 0
    for shard in record.notes["shards"]:
        mine = rows[shard["path"]]
        if sizes[shard["path"]] != shard["size"]:
            missing += 1
            plan.lost.append((shard["split"], mine))
        elif all(row["entry"] in plan.known for row in mine):
            plan.kept.append(shard)
            plan.rows[shard["path"]] = mine
        else:
            plan.lost.append((shard["split"], mine))
    plan.rejects = [row for row in read_table(store, record, "quarantine.parquet") if row["entry"] in plan.known]
    counts = {"new": len(plan.fresh) - len(changed), "changed": len(changed), "removed": len(removed)}
    parts = [f"{n} {what} file{'s' * (n != 1)}" for what, n in counts.items() if n]
    tables = [f for f in record.files if f["path"].startswith(f"{folder}/") and f["path"].count("/") == 2]
    if any(sizes[f["path"]] != f["size"] for f in tables):
        parts.append("its tables are damaged")
    parts += [f"{missing} shard{'s' * (missing != 1)} missing or cut short"] if missing else []
    plan.reason = f"{', '.join(parts)} (against {record.artifact.id})" if parts else ""
    return plan


def units_of(plan: Matched, config: DataConfig) -> Iterator[Unit]:
    """The shards to make: lost ones from the same items as before, then new ones."""
    by_name = {entry.name: entry for entry in plan.source.entries}
    taken: set[str] = set()
    if plan.lost:
        needed = {row["entry"] for _, rows in plan.lost for row in rows} & set(by_name)
        items = {item.key: (by_name[name], item) for name in sorted(needed) for item in plan.source.items(by_name[name])}
        for split, rows in plan.lost:
            again = [items[row["key"]] for row in rows if row["key"] in items]
            taken |= {item.key for _, item in again}
            if again:
                yield Unit(split, again)
    taken |= {row["key"] for rows in plan.rows.values() for row in rows}
    waiting: dict[str, list[tuple[Entry, Item]]] = {split: [] for split in SPLITS}
    seen = 0
    for entry in plan.fresh:
        for item in plan.source.items(entry):
            if item.key in taken:
                continue
            if config.limit is not None and seen >= config.limit:
                break
            seen += 1
            split = item.split or split_of(item.key, config)
            waiting[split].append((entry, item))
            if len(waiting[split]) == config.shard_rows:
                yield Unit(split, waiting[split])
                waiting[split] = []
    for split in SPLITS:
        if waiting[split]:
            yield Unit(split, waiting[split])

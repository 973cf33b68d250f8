"""Raw images to dataset shards: decode, check, fit, split, write; append-only.

A known file keeps its shard and new files make new shards, named by their content.  What cannot be used goes to
the table ``quarantine.parquet`` with its reason, or stops the run when the configuration says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema import DataConfig, identity
from models.config import ConfigError
from tasks.artifacts import Outcome, Record, Step, Store, Work, canonical_json, sha256_of
from tasks.errors import ArtifactError, StepError
from tasks.images import Rejected, fit_item
from tasks.progress import Report, silent
from tasks.sources import Entry, Item, Source, open_source, shown
from tasks.storage import atomic

VERSION = 1
SPLITS = ("train", "validation", "test")
_SCHEMA = pa.schema(
    [("key", pa.string()), ("image", pa.binary()), ("label", pa.int32()), ("caption", pa.string()), ("source", pa.string())]
)
_ITEMS = pa.schema(
    [
        ("key", pa.string()),
        ("entry", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("pixels", pa.binary()),
        ("shard", pa.string()),
    ]
)
_ENTRIES = pa.schema([("entry", pa.string()), ("size", pa.int64()), ("mtime", pa.int64()), ("sha256", pa.string())])
_QUARANTINE = pa.schema([("entry", pa.string()), ("source", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Scan:
    """What ingest would do: the dataset's fingerprint when nothing is new, the number of new or changed files, and why."""

    fingerprint: str | None
    new: int
    reason: str
    record: Record | None = None


@dataclass
class _Unit:
    """The items that make one shard."""

    split: str
    items: list[tuple[Entry, Item]]

    def key(self, config: DataConfig, classes: list[str]) -> str:
        stamps = [(self.split, item.key, entry.size, entry.mtime) for entry, item in self.items]
        return sha256_of(canonical_json([VERSION, identity(config), classes, stamps]))[:24]


@dataclass
class _Plan:
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


def scan(config: DataConfig, store: Store) -> Scan:
    """Compare the source with what the store has; reads names, sizes and times, and contents only where those changed.

    Raises:
        ConfigError: the source cannot be used.
    """
    plan = _match(open_source(config), config, store)
    if plan.base is not None and not plan.reason:
        return Scan(plan.base.artifact.fingerprint, 0, "", plan.base)
    plan.source.check()
    return Scan(None, len(plan.fresh), plan.reason)


def ingest(name: str, config: DataConfig, store: Store, report: Report = silent) -> Outcome:
    """Make (or find) the dataset of a source.

    Raises:
        ConfigError: the source cannot be used, or leaves a split empty.
        StepError: a bad image with ``on_bad: stop``, or a class of which nothing can be used.
    """
    started = time.monotonic()
    found = scan(config, store)
    if found.record is None:
        store.storage.check(write=True)
        with store.lease(f"ingest-{sha256_of(canonical_json(identity(config)))[:12]}"):
            plan = _match(open_source(config), config, store)  # another run may have made it while this one waited
            if plan.base is None or plan.reason:
                return _make(name, config, store, plan, report)
            found = Scan(plan.base.artifact.fingerprint, 0, "", plan.base)
    assert found.record is not None
    # Through execute, which has the last word on what is there and whole.
    record = found.record
    again = Step("ingest", VERSION, "dataset", record.artifact.name, record.config)
    if store.find(again) is None:
        raise ArtifactError(f"{record.artifact.uri}: changed while it was being read; run again")
    return Outcome(record.artifact, "cached", time.monotonic() - started, record.metrics)


def _read_table(store: Store, path: str) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(pa.BufferReader(store.storage.read(path))).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{store.storage.uri(path)}: {error}") from error


def _match(source: Source, config: DataConfig, store: Store) -> _Plan:
    """Set the source against the datasets of the same configuration, the newest first; an exact one ends the search."""
    wanted = identity(config)
    digests: dict[str, str] = {}
    best: _Plan | None = None
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
        return _Plan(source, list(source.classes), fresh=list(source.entries), reason=reason)
    return best


def _against(record: Record, source: Source, store: Store, digests: dict[str, str]) -> _Plan:
    """What one earlier dataset has of the source."""
    folder = record.artifact.folder
    entries = {row["entry"]: row for row in _read_table(store, f"{folder}/entries.parquet")}
    # Labels of known shards stay right: old classes keep their numbers, new ones follow.
    old = list(record.notes["classes"])
    plan = _Plan(source, old + [name for name in source.classes if name not in old], base=record)
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
    sizes = store.storage.sizes([shard["path"] for shard in record.notes["shards"]])
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _read_table(store, f"{folder}/items.parquet"):
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
    plan.rejects = [row for row in _read_table(store, f"{folder}/quarantine.parquet") if row["entry"] in plan.known]
    counts = {"new": len(plan.fresh) - len(changed), "changed": len(changed), "removed": len(removed)}
    parts = [f"{n} {what} file{'s' * (n != 1)}" for what, n in counts.items() if n]
    parts += [f"{missing} shard{'s' * (missing != 1)} missing or cut short"] if missing else []
    plan.reason = f"{', '.join(parts)} (against {record.artifact.id})" if parts else ""
    return plan


def _units(plan: _Plan, config: DataConfig) -> Iterator[_Unit]:
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
                yield _Unit(split, again)
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
            split = split_of(item.key, config)
            waiting[split].append((entry, item))
            if len(waiting[split]) == config.shard_rows:
                yield _Unit(split, waiting[split])
                waiting[split] = []
    for split in SPLITS:
        if waiting[split]:
            yield _Unit(split, waiting[split])


def _make(name: str, config: DataConfig, store: Store, plan: _Plan, report: Report) -> Outcome:
    started = time.monotonic()
    plan.source.check()
    units = list(_units(plan, config))
    counts = Counter({split: sum(s["rows"] for s in plan.kept if s["split"] == split) for split in SPLITS})
    for unit in units:
        counts[unit.split] += len(unit.items)
    for split in ("train", "validation"):
        if not counts[split]:
            total = sum(counts.values())
            raise ConfigError(
                f"data: {total} items leave the {split} split empty (validation={config.validation}, test={config.test}); add data"
            )
    staging = store.root / "staging" / sha256_of(canonical_json(identity(config)))[:16]
    staging.mkdir(parents=True, exist_ok=True)
    made, done, total = [], 0, sum(len(unit.items) for unit in units)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for unit in units:
            made.append(_shard(unit, plan, config, staging, pool))
            done += len(unit.items)
            report("ingest", done, total, {"rejected": float(sum(len(m["rejects"]) for m in made) + len(plan.rejects))})
    outcome = _commit(name, config, store, plan, made, staging, started)
    shutil.rmtree(staging, ignore_errors=True)
    return outcome


def _shard(unit: _Unit, plan: _Plan, config: DataConfig, staging: Path, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Make one shard in the staging folder unless an interrupted run left it there."""
    marker = staging / f"{unit.key(config, plan.classes)}.json"
    try:
        made: dict[str, Any] = json.loads(marker.read_text())
        if made["file"] is None or (staging / made["file"]).stat().st_size == made["size"]:
            return made
    except (OSError, ValueError, KeyError):
        pass
    numbers = {name: i for i, name in enumerate(plan.classes)}
    results = list(pool.map(lambda pair: fit_item(pair[1], config, numbers), unit.items))
    rows, index, rejects, digests = [], [], [], {}
    for (entry, item), result in zip(unit.items, results):
        if plan.source.single and result.digest:
            digests[entry.name] = result.digest
        if isinstance(result, Rejected):
            if config.on_bad == "stop":
                raise StepError(f"{shown(entry, item)}: {result.reason} (data.on_bad is stop)")
            rejects.append({"entry": entry.name, "source": shown(entry, item), "reason": result.reason})
            continue
        rows.append({"key": item.key, "image": result.png, "label": result.label, "caption": item.caption, "source": item.source})
        index.append({"key": item.key, "entry": entry.name, "split": unit.split, "label": result.label, "pixels": result.pixels.hex()})
    made = {
        "split": unit.split,
        "file": None,
        "rows": len(rows),
        "size": 0,
        "sha256": "",
        "index": index,
        "rejects": rejects,
        "digests": digests,
    }
    if rows:
        data = table_bytes(rows, _SCHEMA)
        sha256 = sha256_of(data)
        made |= {"file": f"{unit.split}-{sha256[:12]}.parquet", "size": len(data), "sha256": sha256}
        with atomic(staging / str(made["file"])) as file:
            file.write(data)
    with atomic(marker) as file:
        file.write(json.dumps(made).encode())
    return made


def table_bytes(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Parquet bytes of rows; the same rows give the same bytes."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, compression="zstd", write_statistics=False)
    return sink.getvalue()


def _commit(name: str, config: DataConfig, store: Store, plan: _Plan, made: list[dict[str, Any]], staging: Path, started: float) -> Outcome:
    new = [m for m in made if m["file"]]
    shards = sorted({s["sha256"] for s in [*plan.kept, *new]})
    step = Step("ingest", VERSION, "dataset", name, {"data": identity(config), "classes": plan.classes, "shards": shards})
    present = {row["label"] for rows in plan.rows.values() for row in rows} | {row["label"] for m in new for row in m["index"]}
    for number, label in enumerate(plan.classes):
        if number not in present and label in plan.source.classes and config.limit is None:
            raise StepError(
                f"class {label!r} of {config.source} has no usable image: repair or remove it (see the reasons with on_bad: stop)"
            )

    def body(work: Work) -> dict[str, Any]:
        entries, items, listed = [], [], []
        for shard in plan.kept:
            work.add_file(shard["path"], size=shard["size"], sha256=shard["sha256"], rows=shard["rows"])
            listed.append(shard)
            items += plan.rows[shard["path"]]
        for m in new:
            path = f"{work.folder}/shards/{m['file']}"
            if path not in work.files:
                work.put_file(staging / m["file"], f"shards/{m['file']}", rows=m["rows"])
                listed.append({"path": path, "split": m["split"], "rows": m["rows"], "sha256": m["sha256"], "size": m["size"]})
                items += [{**row, "pixels": bytes.fromhex(row["pixels"]), "shard": path} for row in m["index"]]
        digests = {name: digest for m in made for name, digest in m["digests"].items()}
        for entry in plan.source.entries:
            row = plan.known.get(entry.name)
            sha256 = row["sha256"] if row else digests.get(entry.name) or plan.source.digest(entry)
            entries.append({"entry": entry.name, "size": entry.size, "mtime": entry.mtime, "sha256": sha256})
        rejects = [*plan.rejects, *(reject for m in made for reject in m["rejects"])]
        work.put("entries.parquet", table_bytes(entries, _ENTRIES))
        work.put("items.parquet", table_bytes(items, _ITEMS))
        work.put("quarantine.parquet", table_bytes(rejects, _QUARANTINE))
        work.notes |= {"size": config.size, "channels": config.channels, "classes": plan.classes, "shards": listed}
        counts = Counter(row["split"] for row in items)
        return {**{split: counts[split] for split in SPLITS}, "rejected": len(rejects), "duplicates_across_splits": duplicates(items)}

    outcome = store.execute(step, body)
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - started, 3))


def duplicates(items: Iterable[dict[str, Any]]) -> int:
    """Number of images outside of the training split whose pixels also stand in another split."""
    splits: defaultdict[bytes, set[str]] = defaultdict(set)
    rows = list(items)
    for row in rows:
        splits[row["pixels"]].add(row["split"])
    return sum(row["split"] != "train" and len(splits[row["pixels"]]) > 1 for row in rows)

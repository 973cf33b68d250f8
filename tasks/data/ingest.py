"""Raw images to dataset shards: decode, check, fit, split, write; append-only.

A known file keeps its shard and new files make new shards, named by their content.  What cannot be used goes to
the table ``quarantine.parquet`` with its reason, or stops the run when the configuration says so.

A dataset's fingerprint covers its items (key, split, signal, class name, caption, columns) in the order of their keys, not how
they came into shards: the same data are the same dataset whatever was there before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokenloom.configs.schema import ClusterConfig, DataConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.data import placing
from tokenloom.tasks.data.found import found, noted, reasons
from tokenloom.tasks.data.listing import changed, natural
from tokenloom.tasks.data.matching import (
    SPLITS,
    VERSION,
    Matched,
    digest_of,
    match,
    numbering_of,
    read_items,
    read_table,
    settled,
    units_of,
)
from tokenloom.tasks.making.shards import Making, filled, table_bytes
from tokenloom.tasks.making.units import make_shards
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Outcome, Record, StepSpec, Store, Work, canonical_json, sha256_of
from tokenloom.tasks.store.storage import STAGING
from tokenloom.tasks.store.verification import read_verified

_ITEMS = pa.schema(
    [
        ("key", pa.string()),
        ("entry", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("pixels", pa.binary()),
        ("shard", pa.string()),
        ("caption_bytes", pa.int32()),
        ("beside", pa.string()),
    ]
)
_ENTRIES = pa.schema(
    [
        ("entry", pa.string()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("sha256", pa.string()),
        ("ctime", pa.int64()),
        ("stamp", pa.string()),
    ]
)
_QUARANTINE = pa.schema([("entry", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("retry", pa.bool_())])


@dataclass(frozen=True)
class Scan:
    """What ingest would do: the dataset's fingerprint when nothing is new, the number of new or changed files, and why."""

    fingerprint: str | None
    new: int
    reason: str
    record: Record | None = None


def scan(config: DataConfig, store: Store) -> Scan:
    """Compare the source with what the store has; reads names, sizes and times, and contents only where those changed.

    Raises:
        ConfigError: the source cannot be used.
    """
    plan = match(modalities.kind(config.kind).open_source(config), config, store)
    if plan.base is not None and not plan.reason:
        return Scan(plan.base.artifact.fingerprint, 0, "", plan.base)
    plan.source.check()
    return Scan(None, len(plan.fresh), plan.reason)


def ingest(name: str, config: DataConfig, store: Store, report: Report = silent, cluster: ClusterConfig | None = None) -> Outcome:
    """Make (or find) the dataset of a source.

    Raises:
        ConfigError: the source cannot be used, or leaves a split empty.
        StepError: a bad image with ``on_bad: stop``, or a class of which nothing can be used.
    """
    started = time.monotonic()
    known = scan(config, store)
    if known.record is None:
        store.storage.check(write=True)
        with store.lease(f"ingest-{sha256_of(canonical_json(identity(config)))[:12]}"):
            # Another run may have made it while this one waited.
            plan = match(modalities.kind(config.kind).open_source(config), config, store)
            if plan.base is None or plan.reason:
                return _make(name, config, store, plan, report, cluster or ClusterConfig())
            known = Scan(plan.base.artifact.fingerprint, 0, "", plan.base)
    assert known.record is not None
    record = known.record
    if config.on_bad == "stop" and record.metrics["rejected"]:
        _stop(read_table(store, record, "quarantine.parquet")[0])
    return Outcome(record.artifact, "cached", time.monotonic() - started, record.metrics, found(record))


def _stop(reject: dict[str, Any]) -> None:
    raise StepError(f"{reject['source']}: {reject['reason']} (data.on_bad is stop)")


def _make(name: str, config: DataConfig, store: Store, plan: Matched, report: Report, cluster: ClusterConfig) -> Outcome:
    started = time.monotonic()
    plan.source.check()
    if config.on_bad == "stop" and plan.rejects:
        _stop(plan.rejects[0])
    units = list(units_of(plan, config))
    counts = Counter({split: sum(s["rows"] for s in plan.kept if s["split"] == split) for split in SPLITS})
    for unit in units:
        counts[unit.split] += len(unit.items)
    _refuse_empty(counts, config, [])
    staging = f"{STAGING}/{sha256_of(canonical_json(identity(config)))[:16]}"
    made = make_shards(units, Making.of(plan, config), store, cluster, staging, report, len(plan.rejects))
    if moved := changed({entry.name: entry for unit in units for entry, _ in unit.items}.values()):
        raise StepError(f"{len(moved)} files of {config.source} changed while they were read (first: {moved[0]}): run again when it rests")
    outcome = _commit(name, config, store, plan, made, staging, started)
    store.storage.delete(staging)
    return outcome


def _refuse_empty(counts: Counter[str], config: DataConfig, rejects: list[dict[str, Any]]) -> None:
    """Raise ``ConfigError`` where no item is left for training, or none to hold out."""
    for split in ("train", "validation"):
        if not counts[split]:
            shares = f"validation={config.validation}, test={config.test}"
            why = f"rejected were {reasons(rejects)}; mend or replace those" if rejects else "add data"
            raise ConfigError(f"data: {sum(counts.values())} items leave the {split} split empty ({shares}); {why}")


def _kept_items(plan: Matched, config: DataConfig, store: Store) -> list[dict[str, Any]]:
    """The items of kept shards, in order; what an earlier version did not note of them is read from the shards."""
    items, modality = [], modalities.kind(config.kind)
    for shard in plan.kept:
        rows = plan.rows[shard["path"]]
        if rows and rows[0].get("caption_bytes") is None:
            rows = filled(rows, read_verified(store.storage, shard["path"], shard["sha256"]), modality)
        items += rows
    return items


def contents(items: Iterable[dict[str, Any]]) -> str:
    """Hash of the items of a dataset, in the order of their keys: key, split, signal, class name, caption and columns."""
    digest = hashlib.sha256()
    for row in sorted(items, key=lambda row: str(row["key"])):
        digest.update(canonical_json([row["key"], row["split"], row["pixels"].hex(), row["label"], row["beside"]]) + b"\n")
    return digest.hexdigest()


def _check_classes(plan: Matched, config: DataConfig, present: set[str], rejects: list[dict[str, Any]]) -> None:
    for name in plan.source.classes:
        if name not in present and config.limit is None:
            mine = [reject for reject in rejects if reject.get("label") == name]
            why = reasons(mine) or "see the reasons with on_bad: stop"
            raise StepError(f"class {name!r} of {config.source} has no usable image: repair or remove it ({why})")


def _commit(
    name: str, config: DataConfig, store: Store, plan: Matched, made: list[dict[str, Any]], staging: str, started: float
) -> Outcome:
    new = [{**m, "index": [{**row, "pixels": bytes.fromhex(row["pixels"])} for row in m["index"]]} for m in made if m["file"]]
    items = _kept_items(plan, config, store) + [row for m in new for row in m["index"]]
    rejects = [*plan.rejects, *(reject for m in made for reject in m["rejects"])]
    _refuse_empty(Counter(row["split"] for row in items), config, rejects)
    _check_classes(plan, config, {row["label"] for row in items}, rejects)
    classes = sorted({row["label"] for row in items}, key=natural)
    step = StepSpec("ingest", VERSION, "dataset", name, {"data": identity(config), "classes": classes, "items": contents(items)})
    same = next((r for r in reversed(store.records("dataset")) if r.artifact.fingerprint == step.fingerprint), None)
    if same is not None:
        step = dataclasses.replace(step, name=same.artifact.name)  # only its tables change
    listed = _listed(plan, new, step, classes)
    if same is not None and not set(_files(same)) <= {shard["path"] for shard in listed}:
        sizes = store.storage.sizes([shard["path"] for shard in same.notes["shards"]])
        if all(sizes[shard["path"]] == shard["size"] for shard in same.notes["shards"]):
            # The same items came by another way: what was made of this dataset refers to the shards that it has.
            listed, new, items = _adopted(same), [], read_items(store, same)

    def body(work: Work) -> dict[str, Any]:
        sources = {m["file"]: m for m in new}
        for shard in listed:
            path = str(shard["path"])
            if (m := sources.get(path.rpartition("/")[2])) and path == f"{work.folder}/shards/{m['file']}" and path not in work.files:
                store.storage.copy(f"{staging}/{m['file']}", path)
            work.add_file(path, size=shard["size"], sha256=shard["sha256"], rows=shard["rows"])
        placed = _placed(items, listed, new, work.folder)
        _put_tables(work, plan, made, rejects, placed, classes)
        _note_shards(work, listed, classes)
        _note_order(work, placed, plan, config)
        work.notes |= modalities.kind(config.kind).notes(config, plan.source) | {"classes": classes}
        if plan.source.licence:
            work.notes["licence"] = plan.source.licence
        work.notes["found"] = noted(items, rejects, classes, plan.source.how)
        counts = Counter(row["split"] for row in items)
        return {**{split: counts[split] for split in SPLITS}, "rejected": len(rejects), "duplicates_across_splits": duplicates(items)}

    # Rejects do not enter the fingerprint: a new corrupt file must be noted, but makes no new dataset.
    outcome = store.execute(step, body, again=True)
    told = found(store.record(outcome.artifact))
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - started, 3), told=told)


def _files(record: Record) -> list[str]:
    return [shard["path"] for shard in record.notes["shards"]]


def _adopted(record: Record) -> list[dict[str, Any]]:
    """The shards of a dataset, each with the class names of its numbers."""
    return _numbered(record.notes, record.notes["shards"])


def _numbered(notes: dict[str, Any], shards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shards, each with the class names of its numbers; those of one numbering share one list."""
    names: dict[int | None, list[str | None]] = {}
    found = []
    for shard in shards:
        if (number := shard.get("numbering")) not in names:
            names[number] = numbering_of(notes, shard)
        found.append({**shard, "names": names[number]})
    return found


def _listed(plan: Matched, new: list[dict[str, Any]], step: StepSpec, classes: list[str]) -> list[dict[str, Any]]:
    """All shards in order, each with the class names of its numbers (``names``)."""
    listed: dict[str, dict[str, Any]] = {}
    if plan.base is not None:
        listed |= {shard["path"]: shard for shard in _numbered(plan.base.notes, plan.kept)}
    for m in new:
        path = f"{step.folder}/shards/{m['file']}"
        shard = {"path": path, "split": m["split"], "rows": m["rows"], "sha256": m["sha256"], "size": m["size"]}
        listed.setdefault(path, {**shard, "names": plan.classes})
    # A shard that was lost and made again goes back to its place: the order of the rows is part of what a dataset is.
    known = plan.base.notes["shards"] if plan.base is not None else []
    places = {shard["sha256"]: number for number, shard in enumerate(known)}
    return sorted(listed.values(), key=lambda shard: places.get(shard["sha256"], len(places)))


def _placed(items: list[dict[str, Any]], listed: list[dict[str, Any]], new: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """The items with the path of their shard, in the order of the shards."""
    paths = {row["key"]: f"{folder}/shards/{m['file']}" for m in new for row in m["index"]}
    at = {shard["path"]: number for number, shard in enumerate(listed)}
    placed = [{**row, "shard": paths.get(row["key"]) or row["shard"]} for row in items]
    return sorted(placed, key=lambda row: at[row["shard"]])


def _note_shards(work: Work, listed: list[dict[str, Any]], classes: list[str]) -> None:
    """Note the shards; one whose numbers of classes are not the dataset's says which of ``numberings`` they follow."""
    numbers, numberings, noted_shards = {name: i for i, name in enumerate(classes)}, list[list[int]](), []
    known: dict[int, list[int]] = {}  # by the list of names, which shards share
    for shard in listed:
        plain = {key: value for key, value in shard.items() if key not in ("names", "numbering")}
        if id(shard["names"]) not in known:
            known[id(shard["names"])] = [numbers.get(name, -1) for name in shard["names"]]
        numbering = known[id(shard["names"])]
        if numbering != list(range(len(classes))):
            if numbering not in numberings:
                numberings.append(numbering)
            plain["numbering"] = numberings.index(numbering)
        noted_shards.append(plain)
    work.notes["shards"] = noted_shards
    if numberings:
        work.notes["numberings"] = numberings


def _note_order(work: Work, items: list[dict[str, Any]], plan: Matched, config: DataConfig) -> None:
    """Note the order of the rows, and write where those of a split lie, if their shards hold them in another one."""
    noted_order, tables = placing.note(items, plan.source.parts, config.shard_rows)
    for split, table in tables.items():
        name = f"shards/order-{split}-{sha256_of(table)[:12]}.parquet"
        noted_order.setdefault("files", {})[split] = work.put(name, table)
    if config.blend is not None:
        noted_order["weights"] = [part.weight for part in config.blend.values()]
    work.notes["order"] = noted_order


def _put_tables(
    work: Work, plan: Matched, made: list[dict[str, Any]], rejects: list[dict[str, Any]], items: list[dict[str, Any]], classes: list[str]
) -> None:
    numbers = {name: number for number, name in enumerate(classes)}
    digests = {name: digest for m in made for name, digest in m["digests"].items()}
    entries = []
    for entry in plan.source.entries:
        row = plan.known.get(entry.name)
        sha256 = digests.get(entry.name) or (row and row["sha256"]) or ("" if settled(entry) else digest_of(plan.source, entry))
        times = {"mtime": entry.mtime, "ctime": entry.ctime}
        entries.append({"entry": entry.name, "size": entry.size, "sha256": sha256, "stamp": entry.stamp, **times})
    work.put("entries.parquet", table_bytes(entries, _ENTRIES))
    work.put("items.parquet", table_bytes(({**row, "label": numbers[row["label"]]} for row in items), _ITEMS))
    work.put("quarantine.parquet", table_bytes(rejects, _QUARANTINE))


def duplicates(items: Iterable[dict[str, Any]]) -> int:
    """Number of images outside of the training split whose pixels also stand in another split."""
    splits: defaultdict[bytes, set[str]] = defaultdict(set)
    rows = list(items)
    for row in rows:
        splits[row["pixels"]].add(row["split"])
    return sum(row["split"] != "train" and len(splits[row["pixels"]]) > 1 for row in rows)

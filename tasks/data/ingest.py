"""Raw images to dataset shards: decode, check, fit, split, write; append-only.

A known file keeps its shard and new files make new shards, named by their content.  What cannot be used goes to
the table ``quarantine.parquet`` with its reason, or stops the run when the configuration says so.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.configs.schema import DataConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.data.columns import stored
from tokenloom.tasks.data.listing import Entry, Item, shown
from tokenloom.tasks.data.matching import SPLITS, VERSION, Matched, Unit, match, read_table, units_of
from tokenloom.tasks.data.noticed import Noticed, noticed
from tokenloom.tasks.modalities.base import Fitted, Modality, Rejected
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Outcome, Record, StepSpec, Store, Work, canonical_json, sha256_of
from tokenloom.tasks.store.storage import atomic


def shard_schema(modality: Modality, further: Iterable[str] = ()) -> pa.Schema:
    """The columns of a dataset shard of this kind, with those of ``data.columns``."""
    beside = [(stored(name), pa.binary()) for name in further]
    rest = [("label", pa.int32()), ("caption", pa.string()), ("source", pa.string())]
    return pa.schema([("key", pa.string()), *modality.columns, *beside, *rest])


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
            # Another run may have made it while this one waited.
            plan = match(modalities.kind(config.kind).open_source(config), config, store)
            if plan.base is None or plan.reason:
                return _make(name, config, store, plan, report)
            found = Scan(plan.base.artifact.fingerprint, 0, "", plan.base)
    assert found.record is not None
    record = found.record
    if config.on_bad == "stop" and record.metrics["rejected"]:
        first = read_table(store, record, "quarantine.parquet")[0]
        raise StepError(f"{first['source']}: {first['reason']} (data.on_bad is stop)")
    return Outcome(record.artifact, "cached", time.monotonic() - started, record.metrics)


def _make(name: str, config: DataConfig, store: Store, plan: Matched, report: Report) -> Outcome:
    started = time.monotonic()
    plan.source.check()
    if config.on_bad == "stop" and plan.rejects:
        raise StepError(f"{plan.rejects[0]['source']}: {plan.rejects[0]['reason']} (data.on_bad is stop)")
    units = list(units_of(plan, config))
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
    with noticed() as warned, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for unit in units:
            made.append(_shard(unit, plan, config, staging, pool, warned))
            done += len(unit.items)
            report("ingest", done, total, {"rejected": float(sum(len(m["rejects"]) for m in made) + len(plan.rejects))})
    outcome = _commit(name, config, store, plan, made, staging, started)
    shutil.rmtree(staging, ignore_errors=True)
    return outcome


def _shard(unit: Unit, plan: Matched, config: DataConfig, staging: Path, pool: ThreadPoolExecutor, warned: Noticed) -> dict[str, Any]:
    """Make one shard in the staging folder unless an interrupted run left it there."""
    marker = staging / f"{unit.key(config, plan.classes)}.json"
    try:
        made: dict[str, Any] = json.loads(marker.read_text())
        if made["file"] is None or (staging / made["file"]).stat().st_size == made["size"]:
            return made
    except (OSError, ValueError, KeyError):
        pass
    modality, numbers = modalities.kind(config.kind), {name: i for i, name in enumerate(plan.classes)}

    def fit(pair: tuple[Entry, Item]) -> Fitted | Rejected:
        with warned.item(shown(*pair)):
            return modality.fit(pair[1], config, numbers)

    results = list(pool.map(fit, unit.items))
    rows, index, rejects, digests = [], [], [], {}
    for (entry, item), result in zip(unit.items, results):
        if plan.source.single and result.digest:
            digests[entry.name] = result.digest
        if isinstance(result, Rejected):
            if config.on_bad == "stop":
                raise StepError(f"{shown(entry, item)}: {result.reason} (data.on_bad is stop)")
            rejects.append({"entry": entry.name, "source": shown(entry, item), "reason": result.reason})
            continue
        caption = plan.source.caption(item, config.captions)
        rows.append({"key": item.key, **result.columns, "label": result.label, "caption": caption, "source": item.source})
        index.append({"key": item.key, "entry": entry.name, "split": unit.split, "label": result.label, "pixels": result.content.hex()})
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
        data = table_bytes(rows, shard_schema(modality, config.columns or ()))
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


def _commit(
    name: str, config: DataConfig, store: Store, plan: Matched, made: list[dict[str, Any]], staging: Path, started: float
) -> Outcome:
    new = [m for m in made if m["file"]]
    shards = sorted({s["sha256"] for s in [*plan.kept, *new]})
    step = StepSpec("ingest", VERSION, "dataset", name, {"data": identity(config), "classes": plan.classes, "shards": shards})
    if plan.base is not None and step.fingerprint == plan.base.artifact.fingerprint:
        step = dataclasses.replace(step, name=plan.base.artifact.name)  # only its tables change
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
        # A shard that was lost and made again goes back to its place: the order of the rows is part of what a dataset is.
        known = plan.base.notes["shards"] if plan.base is not None else []
        places = {shard["sha256"]: number for number, shard in enumerate(known)}
        listed.sort(key=lambda shard: places.get(shard["sha256"], len(places)))
        at = {shard["path"]: number for number, shard in enumerate(listed)}
        items.sort(key=lambda row: at[row["shard"]])
        digests = {name: digest for m in made for name, digest in m["digests"].items()}
        for entry in plan.source.entries:
            row = plan.known.get(entry.name)
            sha256 = row["sha256"] if row else digests.get(entry.name) or plan.source.digest(entry)
            entries.append({"entry": entry.name, "size": entry.size, "mtime": entry.mtime, "sha256": sha256})
        rejects = [*plan.rejects, *(reject for m in made for reject in m["rejects"])]
        work.put("entries.parquet", table_bytes(entries, _ENTRIES))
        work.put("items.parquet", table_bytes(items, _ITEMS))
        work.put("quarantine.parquet", table_bytes(rejects, _QUARANTINE))
        work.notes |= {**modalities.kind(config.kind).notes(config, plan.source), "classes": plan.classes, "shards": listed}
        counts = Counter(row["split"] for row in items)
        return {**{split: counts[split] for split in SPLITS}, "rejected": len(rejects), "duplicates_across_splits": duplicates(items)}

    # Rejects do not enter the fingerprint: a new corrupt file must be noted, but makes no new dataset.
    outcome = store.execute(step, body, again=True)
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - started, 3))


def duplicates(items: Iterable[dict[str, Any]]) -> int:
    """Number of images outside of the training split whose pixels also stand in another split."""
    splits: defaultdict[bytes, set[str]] = defaultdict(set)
    rows = list(items)
    for row in rows:
        splits[row["pixels"]].add(row["split"])
    return sum(row["split"] != "train" and len(splits[row["pixels"]]) > 1 for row in rows)

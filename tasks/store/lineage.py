"""What an artifact came from, why one would be made again, and what nothing refers to any more."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tokenloom.models.core.config import canonical
from tokenloom.tasks.runtime.errors import ArtifactError, OldRecordError
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.records import KINDS, Artifact, Record, StepSpec
from tokenloom.tasks.store.storage import STAGING, is_temporary
from tokenloom.tasks.store.verification import ASIDE

_ABANDONED = 3600.0  # seconds after which an unfinished write of a dead process is rubbish


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Dotted paths at which two pieces of plain data differ, as ``path: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            here = f"{path}.{key}" if path else key
            if key not in new:
                yield f"{here}: {_short(old[key])} -> gone"
            elif key not in old:
                yield f"{here}: new, {_short(new[key])}"
            else:
                yield from differences(old[key], new[key], here)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            yield from differences(a, b, f"{path}[{i}]")
    elif old != new or type(old) is not type(new):
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def explain(store: Store, step: StepSpec) -> str:
    """Why a step would run, for people: what is damaged, or what changed against the nearest artifact; "" when it would not."""
    if store.find(step):
        return ""
    own = store.artifact(step)
    if store.storage.exists(f"{own.folder}/record.json"):
        return "; ".join(store.verify(own)[:4])
    begun = " (a half-written one is resumed)" if store.storage.list(own.folder) else ""
    changes = {r.artifact: _changes(r, step) for r in store.records(step.kind) if r.step == step.step}
    if not changes:
        return f"no such artifact{begun}"
    # sorted() is stable and records come oldest first: the newest of the nearest is the last reversed.
    nearest = min(reversed(list(changes)), key=lambda a: (a.name != step.name, len(changes[a])))
    found = changes[nearest]
    more = f"; {len(found) - 6} more" if len(found) > 6 else ""
    return f"{'; '.join(found[:6])}{more} (against {nearest.id}){begun}"


def _changes(record: Record, step: StepSpec) -> list[str]:
    found = list(differences(record.config, canonical(step.config)))
    if record.version != step.version:
        found.append(f"step version: {record.version} -> {step.version}")
    for role in sorted(set(record.inputs) | set(step.inputs)):
        old, new = record.inputs.get(role), step.inputs.get(role)
        if (old and old.fingerprint) != (new and new.fingerprint):
            found.append(f"input {role}: {old.id if old else 'none'} -> {new.id if new else 'none'}")
    return found


def lineage_of(store: Store, artifact: Artifact) -> dict[str, list[Artifact]]:
    """``ancestors`` (what it was made from) and ``descendants`` (what was made from it), nearest first."""
    parents: dict[Artifact, list[Artifact]] = {}
    children: defaultdict[Artifact, list[Artifact]] = defaultdict(list)
    for record in store.records():
        parents[record.artifact] = list(record.inputs.values())
        for parent in record.inputs.values():
            children[parent].append(record.artifact)

    def walk(edges: dict[Artifact, list[Artifact]]) -> list[Artifact]:
        found: dict[Artifact, None] = {}
        layer = [artifact]
        while layer:
            layer = [a for here in layer for a in edges.get(here, []) if a not in found and not found.setdefault(a)]
        return list(found)

    return {"ancestors": walk(parents), "descendants": walk(children)}


def collect(store: Store, dry_run: bool = True) -> list[str]:
    """Remove (or only list) what no record refers to and nobody works on; the paths.

    That is half-written folders without a live lease, shards that no record names, and old checkpoints. A file that any record
    refers to stays, whatever folder it is in.
    """
    storage = store.storage
    candidates: dict[str, set[str]] = {}  # lease key: paths
    for kind in KINDS:
        for name in storage.folders(kind):
            key = f"{kind}-{name.rpartition('-')[2]}"
            if not store.leased(key):
                candidates.setdefault(key, set()).update(_loose(f"{kind}/{name}", store))
    for name in storage.folders(STAGING):
        if not store.leased(key := f"ingest-{name[:12]}"):
            candidates[key] = {path for path, _ in storage.list(f"{STAGING}/{name}")}
    kept = _referenced(store)
    rubbish = {key: sorted(paths - kept) for key, paths in candidates.items()}
    found = [path for paths in rubbish.values() for path in paths]
    abandoned = _abandoned(store)
    if dry_run:
        return found + abandoned
    for key, paths in rubbish.items():
        if paths and not store.leased(key):
            with store.lease(key):
                # Once more, now that nobody else works here: a run may have come and gone meanwhile.
                needed = _referenced(store)
                for path in paths:
                    if path in needed:
                        found.remove(path)
                    else:
                        storage.delete(path)
        else:
            found = [path for path in found if path not in paths]
    for path in abandoned:
        storage.delete(path)
    _prune(store)
    return found + abandoned


def _loose(folder: str, store: Store) -> set[str]:
    """Files of a folder that may go unless a record names them: all of a half-written one, shards and old checkpoints else."""
    files = [path for path, _ in store.storage.list(folder)]
    if not store.storage.exists(f"{folder}/record.json"):
        return set(files)
    if _of_older_version(folder, store):
        return set()  # which of its files are needed, the version that made it knows
    return _old_checkpoints(folder, files) | {path for path in files if path.startswith(f"{folder}/shards/")}


def _of_older_version(folder: str, store: Store) -> bool:
    try:
        Record.from_bytes(store.storage.read(f"{folder}/record.json"), folder, store.storage)
    except OldRecordError:
        return True
    except ArtifactError:
        return False
    return False


def _referenced(store: Store) -> set[str]:
    kept: set[str] = set()
    for record in store.records():
        kept |= {f["path"] for f in record.files}
    return kept


def _old_checkpoints(folder: str, files: list[str]) -> set[str]:
    """Files of all checkpoints but the newest one of a complete artifact."""
    steps = sorted({path.split("/")[3] for path in files if path.startswith(f"{folder}/checkpoints/") and path.count("/") > 3})
    return {path for path in files for step in steps[:-1] if path.startswith(f"{folder}/checkpoints/{step}/")}


def _abandoned(store: Store) -> list[str]:
    """Damaged files that were put aside, and (on local disk) unfinished writes of dead processes."""
    aside = [path for path, _ in store.storage.list(ASIDE)]
    if not store.storage.is_local:
        return aside
    base, limit = store.storage.local_path(), time.time() - _ABANDONED
    return aside + sorted(
        p.relative_to(base).as_posix() for p in base.rglob(".*.tmp") if is_temporary(p.name) and p.stat().st_mtime < limit
    )


def _prune(store: Store) -> None:
    """Remove folders that have become empty (local disk; S3 has none)."""
    if not store.storage.is_local:
        return
    for kind in KINDS:
        base = store.storage.local_path(kind)
        for path in sorted(base.rglob("*"), key=lambda p: -len(p.parts)) if base.is_dir() else []:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

"""Everything of a store that is not as it was written, as ``doctor --verify`` lists it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.records import KINDS, RECORD, Artifact, sha256_of, unsealed
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import ASIDE

Problem = tuple[str, str]  # path in the store, what is wrong


def inspect(store: Store, deep: bool) -> Iterator[Problem]:
    """Everything of a store that is not as it was written: records, the files that they name, checkpoints, markers.

    Args:
        deep: compare hashes too, and put aside what is damaged.
    """
    seen: set[str] = set()
    for kind in KINDS:
        for folder in store.storage.folders(kind):
            name, _, fingerprint = folder.rpartition("-")
            at = Artifact(kind, name, fingerprint, store.storage.uri(f"{kind}/{folder}"))
            if store.storage.exists(f"{at.folder}/{RECORD}"):
                yield from _recorded(store, at, deep, seen)
            if deep:
                yield from _loose(store.storage, at.folder)


def _recorded(store: Store, at: Artifact, deep: bool, seen: set[str]) -> Iterator[Problem]:
    storage = store.storage
    try:
        record = store.record(at)
    except ArtifactError as error:
        yield f"{at.folder}/{RECORD}", str(error)
        return
    sizes = storage.sizes([file["path"] for file in record.files])
    for file in record.files:
        path, size = file["path"], sizes[file["path"]]
        if size is None:
            yield path, f"file {path} is missing"
        elif size != file["size"]:
            yield path, f"file {path} has {size} bytes, {file['size']} are recorded"
            if deep:
                storage.move(path, f"{ASIDE}/{path}")
        elif deep and path not in seen:
            seen.add(path)
            if sha256_of(storage.local_path(path) if storage.is_local else storage.read(path)) != file["sha256"]:
                storage.move(path, f"{ASIDE}/{path}")
                yield path, f"file {path} has another hash than recorded; put aside in {ASIDE}"


def _loose(storage: Storage, folder: str) -> Iterator[Problem]:
    """Checkpoints and markers: no record names them, each says itself what it should be."""
    for path, _ in storage.list(f"{folder}/checkpoints"):
        if path.endswith("/state.json"):
            yield from _checkpoint(storage, path)
    for path, _ in storage.list(f"{folder}/markers"):
        yield from _sealed(storage, path)


def _checkpoint(storage: Storage, path: str) -> Iterator[Problem]:
    problems = list(_sealed(storage, path))
    yield from problems
    if problems:
        return
    try:
        index = unsealed(storage.read(path))
        state = path.replace("/state.json", "/state.safetensors")
        if sha256_of(storage.local_path(state) if storage.is_local else storage.read(state)) != index["sha256"]:
            storage.move(state, f"{ASIDE}/{state}")
            yield state, f"checkpoint {state} has another hash than recorded; put aside in {ASIDE}"
    except FileNotFoundError:  # a running training has dropped it
        return


def _sealed(storage: Storage, path: str) -> Iterator[Problem]:
    try:
        unsealed(storage.read(path))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        storage.move(path, f"{ASIDE}/{path}")
        yield path, f"file {path} was changed or damaged ({error}); put aside in {ASIDE}"

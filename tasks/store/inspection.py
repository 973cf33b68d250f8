"""Everything of a store that is not as it was written, as ``doctor --verify`` lists it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

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
    sizes = {path: size for kind in KINDS for path, size in store.storage.list(kind)}
    for kind, folder in sorted(
        {(path.split("/")[0], path.split("/")[1]) for path in sizes}, key=lambda each: (KINDS.index(each[0]), each[1])
    ):
        name, _, fingerprint = folder.rpartition("-")
        at = Artifact(kind, name, fingerprint, store.storage.uri(f"{kind}/{folder}"))
        if f"{at.folder}/{RECORD}" in sizes:
            yield from _recorded(store, at, deep, seen, sizes)
        if deep:
            yield from _loose(store.storage, at.folder)


def _recorded(store: Store, at: Artifact, deep: bool, seen: set[str], sizes: Mapping[str, int]) -> Iterator[Problem]:
    storage = store.storage
    try:
        files = list(store.record(at).files)
    except ArtifactError as error:
        yield f"{at.folder}/{RECORD}", str(error)
        return
    for file in files:
        path, size = file["path"], sizes.get(file["path"])
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

"""Bytes that are what was recorded: verified when they are used, looked through by ``doctor --verify``, put aside when they are not.

A damaged file is moved to ``.damaged/`` of the store.  Its artifact is then no longer whole, so the next run makes again what is
missing, and nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.records import KINDS, RECORD, Artifact, sha256_of, unsealed
from tokenloom.tasks.store.storage import Storage

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Store

log = logging.getLogger(__name__)

ASIDE = ".damaged"
_known: dict[tuple[str, int, int, int], str] = {}  # hashes of local files as they stood: (path, size, mtime, inode)

Problem = tuple[str, str]  # path in the store, what is wrong


def read_verified(storage: Storage, path: str, sha256: str) -> bytes:
    """A file's bytes, which have this hash.

    Raises:
        ArtifactError: missing, or changed (then it is put aside), naming its address.
    """
    try:
        raw = storage.read(path)
        if sha256_of(raw) != sha256:
            raw = storage.read(path)  # the way here may have been at fault, not the file
    except FileNotFoundError as error:
        raise ArtifactError(f"{storage.uri(path)}: missing; run again to make it anew") from error
    if sha256_of(raw) != sha256:
        raise damaged(storage, path)
    return raw


def verify_local(storage: Storage, path: str, sha256: str) -> None:
    """See that a file of a local store has this hash; one that has not changed since it was last seen is not read again.

    Raises:
        ArtifactError: missing, or changed (then it is put aside).
    """
    try:
        if _local_hash(storage.local_path(path)) != sha256:
            raise damaged(storage, path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{storage.uri(path)}: missing; run again to make it anew") from error


def _local_hash(file: Path) -> str:
    stat = file.stat()
    key = (str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _known:
        _known[key] = sha256_of(file)
    return _known[key]


def damaged(storage: Storage, path: str) -> ArtifactError:
    """Put a damaged file aside; the error that says so."""
    storage.move(path, f"{ASIDE}/{path}")
    log.warning("%s is damaged: put aside as %s", storage.uri(path), storage.uri(f"{ASIDE}/{path}"))
    return ArtifactError(
        f"{storage.uri(path)}: its content is not what was recorded (wrong hash); it is put aside in {ASIDE}: run again to make it anew"
    )


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
        said = unsealed(storage.read(path))
        state = path.replace("/state.json", "/state.safetensors")
        if sha256_of(storage.local_path(state) if storage.is_local else storage.read(state)) != said["sha256"]:
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

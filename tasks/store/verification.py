"""Bytes that are what was recorded: verified when they are used, put aside when they are not (``inspection`` looks through all).

A damaged file is moved to ``.damaged/`` of the store.  Its artifact is then no longer whole, so the next run makes again what is
missing, and nothing else.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.records import sha256_of
from tokenloom.tasks.store.storage import Storage

log = logging.getLogger(__name__)

ASIDE = ".damaged"
_known: dict[tuple[str, int, int, int], str] = {}  # hashes of local files as they stood: (path, size, mtime, inode)


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

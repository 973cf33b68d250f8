"""Files on local disk that appear whole or not at all, and paths that stay inside their store."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tokenloom.tasks.runtime.errors import StepError


def clean(path: str) -> str:
    """The path without ``.`` parts; raises ``StepError`` when it could leave the store."""
    if path.startswith(("/", "~")) or "\\" in path or "\0" in path or ".." in path.split("/"):
        raise StepError(f"path {path!r}: must be relative to the store, with / and without ..")
    return "/".join(part for part in path.split("/") if part not in ("", "."))


@contextlib.contextmanager
def atomic(target: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that takes ``target``'s place, synced to disk, when the block ends without error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a write which has not ended."""
    return name.startswith(".") and name.endswith(".tmp")


def create(target: Path, data: bytes) -> bool:
    """Write a file whole unless it exists; whether it was written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.write_bytes(data)
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def files_below(base: Path, folder: Path) -> list[tuple[str, int]]:
    """All whole files below a folder as (path relative to ``base``, size), sorted."""
    found = []
    for here, _, names in os.walk(folder):
        for name in names:
            if not is_temporary(name):
                file = Path(here, name)
                with contextlib.suppress(FileNotFoundError):
                    found.append((file.relative_to(base).as_posix(), file.stat().st_size))
    return sorted(found)

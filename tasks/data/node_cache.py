"""The folders of a node's cache: what is used is marked, and what was not used for longest goes where there is too much.

A folder that goes while a process reads it is no harm: its maps and open files stay until they are closed.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from tokenloom.tasks.store.leases import file_lock

log = logging.getLogger(__name__)

#: Folders below ``rows`` of the cache, by what they hold; the number is raised when their arrays change.
FLAT, ENCODED = "flat-3", "encoded-3"
_USED = "used"


def folder_of(cache: Path, form: str, name: str) -> Path:
    """The cache's folder of this form and name."""
    return cache / "rows" / form / name[:32]


def lock_of(cache: Path, folder: Path, part: str = "") -> Path:
    """The file that is locked while a folder, or a part of it, is filled."""
    return cache / "locks" / f"{folder.name}{part and '-'}{part}.lock"


def used(folder: Path) -> None:
    """Mark a folder as used now."""
    try:
        (folder / _USED).touch()
    except OSError:
        return  # it has gone: what is open stays open


def trim(cache: Path, limit: float, keep: Collection[Path] = ()) -> list[Path]:
    """Remove folders, longest unused first, until at most ``limit`` bytes are held; those that went.

    Folders in ``keep`` stay even above the limit, and so does what is being filled.
    """
    with file_lock(cache / "locks" / "trim.lock", "the size of the cache"):
        found = [(_last_used(folder), _size(folder), folder) for form in _forms(cache) for folder in form.iterdir() if folder.is_dir()]
        total, gone = sum(size for _, size, _ in found), list[Path]()
        for _, size, folder in sorted(found, key=lambda each: each[0]):
            if total <= limit:
                break
            if folder in keep or folder.name.startswith("."):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            total, gone = total - size, [*gone, folder]
    return gone


def _forms(cache: Path) -> list[Path]:
    rows = cache / "rows"
    return [form for form in rows.iterdir() if form.is_dir()] if rows.is_dir() else []


def _last_used(folder: Path) -> float:
    for path in (folder / _USED, folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return time.time()


def _size(folder: Path) -> int:
    """Bytes on the disk (a file that is filled bit by bit has holes)."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return total

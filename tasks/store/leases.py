"""At most one worker on an artifact, as well as the store allows; a dead worker's lease is taken over.

On one host the kernel's file lock, which ends with its process.  On object storage also a lease object that
its holder renews: advice only, because some servers do not honour conditional writes.  What is right in the
end rests on content names and on the record, which is written once and last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.storage import Storage

log = logging.getLogger(__name__)

BEAT = 20.0  # seconds between renewals of a lease object
STALE = 90.0  # a lease object that has not changed for so long belongs to nobody
POLL = 0.1


@contextlib.contextmanager
def file_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the kernel's lock on a file, waiting for it; it frees itself when the process dies.

    The file stays: removing it would let two processes lock two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    log.info("another process works on %s: waiting for it", what)
                waiting = True
                time.sleep(POLL)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def file_lock_held(path: Path) -> bool:
    """Whether some process holds the lock now."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def object_lease(storage: Storage, path: str, beat: float = BEAT, stale: float = STALE) -> Iterator[None]:
    """Hold the lease object at ``path``, waiting for it; renewed every ``beat`` seconds by a thread.

    A lease is dead when its object has not changed for ``stale`` seconds, measured by this process's own
    clock, or when its holder was a process of this host that is gone.
    """
    holder = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
    mine, ended = _acquired(storage, path, holder, beat, stale), threading.Event()
    thread = threading.Thread(target=_renew, args=(storage, path, holder, mine, beat, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(StepError, OSError):
            if _id(storage.read(path)) == holder["id"]:
                storage.delete(path)


def _acquired(storage: Storage, path: str, holder: dict[str, Any], beat: float, stale: float) -> bytes:
    """Wait until the lease is this holder's; what its object holds then."""
    mine = _stamp(holder)
    seen, since = b"", time.monotonic()
    while not storage.write_if_absent(path, mine):
        try:
            current = storage.read(path)
        except FileNotFoundError:
            continue
        if _id(current) == holder["id"]:  # written, but the answer was lost on its way
            return current
        if not seen:
            log.info("another process works on %s: waiting for it", path)
        if current != seen:
            seen, since = current, time.monotonic()
        if (_gone(current) or time.monotonic() - since > stale) and storage.swap(path, current, mine):
            log.warning("took over a dead lease: %s", storage.uri(path))
            return mine
        time.sleep(min(beat, 10 * POLL))
    return mine


def _renew(storage: Storage, path: str, holder: dict[str, Any], mine: bytes, beat: float, ended: threading.Event) -> None:
    """Write the lease again every ``beat`` seconds until ``ended``, or until somebody else holds it."""
    while not ended.wait(beat):
        fresh = _stamp(holder)
        try:
            if not storage.swap(path, mine, fresh):
                fresh = storage.read(path)
                if _id(fresh) != holder["id"]:  # else the answer of an earlier renewal was lost on its way
                    raise FileNotFoundError
            mine = fresh
        except FileNotFoundError:
            log.warning("lost the lease %s: work may be done twice, never mixed", storage.uri(path))
            return
        except (StepError, OSError) as error:
            log.warning("cannot renew the lease %s: %s", storage.uri(path), error)


def object_lease_held(storage: Storage, path: str, stale: float = STALE) -> bool:
    """Whether a lease object looks alive, by the wall clock of its last renewal."""
    try:
        current = storage.read(path)
        return not _gone(current) and time.time() - float(json.loads(current)["time"]) < stale
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _stamp(holder: dict[str, object]) -> bytes:
    return json.dumps({**holder, "time": time.time()}, sort_keys=True).encode()


def _id(current: bytes) -> str | None:
    try:
        return str(json.loads(current)["id"])
    except (ValueError, KeyError, TypeError):
        return None


def _gone(current: bytes) -> bool:
    """Whether the holder was a process of this host that no longer runs."""
    try:
        holder = json.loads(current)
        if holder["host"] != socket.gethostname():
            return False
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):
        return False
    return False

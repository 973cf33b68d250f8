"""What was found in a file elsewhere, kept on this machine, so that the file is not read through again to see what it holds."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable
from typing import Any

from tokenloom.tasks.runtime.cluster import node_root
from tokenloom.tasks.sources.far import Far
from tokenloom.tasks.store.files import atomic


def remembered(place: Far, what: str, find: Callable[[], Any]) -> Any:
    """Plain data that ``find`` makes of a file, or made of it as it is now an earlier time.

    Args:
        place: the file, listed (with its size, time and tag).
        what: names the kind of data and all that it depends on besides the file.
    """
    if place.size is None or place.recent:
        return find()
    key = hashlib.sha256(repr((str(place), place.size, place.mtime, place.tag, what)).encode("utf-8", "surrogateescape")).hexdigest()
    file = node_root("") / "listings" / f"{key[:40]}.json.gz"
    with contextlib.suppress(OSError, ValueError, EOFError):
        return json.loads(gzip.decompress(file.read_bytes()))
    found = find()
    with contextlib.suppress(OSError):  # it is only remembered
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as out:
            out.write(gzip.compress(json.dumps(found).encode(), 3))
    return found

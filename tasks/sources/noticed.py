"""Warnings of libraries while items are read: counted, with the first item of each, instead of a line without a name for every one."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class Noticed:
    """What libraries have warned of, by item; several threads may read at once."""

    def __init__(self) -> None:
        self._here, self._lock = threading.local(), threading.Lock()
        self._items: dict[str, list[str]] = {}  # by message, each item once

    @contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Warnings of this thread within the block are of the item of this name."""
        self._here.name = name
        try:
            yield
        finally:
            self._here.name = None

    def note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """In place of ``warnings.showwarning``."""
        text, name = (str(message).strip().splitlines() or [""])[0], getattr(self._here, "name", None) or "?"
        with self._lock:
            known = self._items.setdefault(text, [])
            if name not in known:
                known.append(name)

    def add(self, notes: Mapping[str, Sequence[str]]) -> None:
        """Take over what another process has noticed."""
        with self._lock:
            for text, names in notes.items():
                known = self._items.setdefault(text, [])
                known += [name for name in names if name not in known]

    def taken(self) -> dict[str, list[str]]:
        """What was noticed since it was last taken."""
        with self._lock:
            items, self._items = self._items, {}
        return items

    def tell(self) -> None:
        """One log line a message."""
        for text, names in sorted(self._items.items()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            log.warning("%s%s: %s", names[0], more, text)


@contextmanager
def noticed() -> Iterator[Noticed]:
    """Gather what libraries warn of within the block, and tell it at the end."""
    found = Noticed()
    try:
        with noticing(found):
            yield found
    finally:
        found.tell()


@contextmanager
def noticing(found: Noticed) -> Iterator[None]:
    """Gather what libraries warn of within the block."""
    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = found.note
        yield

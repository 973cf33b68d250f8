"""What a source lists: entries, the items in each, and their order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.tasks.runtime.errors import StepError

ONE_CLASS = "all"  # the one class of a source without labels


def looked(where: str) -> str:
    """What a message adds on a path that a person gave in part: the whole of it, and from where it was taken."""
    whole = os.path.abspath(os.path.expanduser(where))
    return "" if whole == where.rstrip("/") else f"; looked for {whole} (a relative path begins where the command is started)"


@dataclass(frozen=True)
class Item:
    """One raw item: a key that is stable between runs, a way to read it, its class name, and its place in the source (no absolute path)."""

    key: str
    read: Callable[[], bytes | np.ndarray]
    label: str | None
    caption: str | None
    source: str
    problem: str | None = None  # known without reading, e.g. an unsafe name
    columns: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # further signals by name (``data.columns``)
    split: str | None = None  # where the kind of signal decides it, e.g. by time; else a keyed hash of the key does


@dataclass(frozen=True)
class Entry:
    """One file of a source; ``size`` and ``mtime`` (ns) change when it does."""

    name: str
    size: int
    mtime: int
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """A listing: class names, entries in order, the items of an entry, and a hash of an entry's content.

    ``single`` sources hold one item an entry.  ``check`` raises before work starts when a class has nothing usable.
    ``captioned`` sources have texts of their own; ``names`` and ``phrases`` are what a class is called, and a caption made of that.
    """

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    items: Callable[[Entry], Iterator[Item]]
    digest: Callable[[Entry], str]
    single: bool = False
    check: Callable[[], None] = field(default=lambda: None)
    captioned: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    phrases: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)  # what a kind of signal knows of the whole source

    def caption(self, item: Item, captions: str) -> str | None:
        """The text of an item under ``data.captions``: its own, made of its class, or none."""
        if captions == "source" or item.label is None:
            return item.caption
        return self.of_class(item.label, captions)

    def of_class(self, label: str, captions: str) -> str | None:
        """The text that ``data.captions`` makes of a class."""
        if captions in ("source", "none"):
            return None
        name = self.names.get(label, label.replace("_", " "))
        return self.phrases.get(label, name) if captions == "names" else captions.replace("{name}", name)


def shown(entry: Entry, item: Item) -> str:
    """Where an item is, for people: an absolute path where there is one."""
    if entry.path is None:
        return item.source
    return str(entry.path if item.source == entry.name else entry.path.parent / item.source)


def natural(name: str) -> tuple[Any, ...]:
    """Sort key under which "2" comes before "10"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def turns(groups: Sequence[Any]) -> list[Any]:
    """The first of each group, then the second of each, and so on."""
    longest = max((len(group) for group in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def file_digest(entry: Entry) -> str:
    """SHA-256 of an entry's file."""
    if entry.path is None:
        raise StepError(f"{entry.name}: not a file")
    with open(entry.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

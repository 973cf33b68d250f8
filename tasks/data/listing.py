"""What a source lists: entries, the items in each, and their order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tokenloom.tasks.data.reading import opened
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.sources.far import Far, Place, again

if TYPE_CHECKING:
    from tokenloom.configs.schema import DataConfig

ONE_CLASS = "all"  # the one class of a source without labels
#: The parts of a source that is no blend, whose classes take turns.
IN_TURNS = (("", True),)


def looked(where: str) -> str:
    """What a message adds on a path that a person gave in part: the whole of it, and from where it was taken."""
    whole = os.path.abspath(os.path.expanduser(where))
    return "" if whole == where.rstrip("/") else f"; looked for {whole} (a relative path begins where the command is started)"


@dataclass(frozen=True, slots=True)
class Item:
    """One raw item: a key that is stable between runs, a way to read it, its class name, and its place in the source (no absolute path)."""

    key: str
    read: Callable[[], bytes | np.ndarray]
    label: str | None
    caption: str | None
    source: str
    problem: str | None = None  # known without reading, e.g. an unsafe name
    columns: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)  # further signals by name (``data.columns``)
    split: str | None = None  # where the source decides it, e.g. by time or folder; else a keyed hash of the key does
    retry: bool = False  # the problem may pass: it is never remembered


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a source, with what changes when it does.

    ``mtime`` and ``ctime`` in ns; the second also tells of a file that another one of the same size and time took the place of.
    ``stamp`` names what its items depend on besides the file: class names that stand elsewhere, a table of captions.
    A content is read again, and its hash compared, when any of them differs.
    """

    name: str
    size: int
    mtime: int
    path: Place | None = None
    ctime: int = 0
    stamp: str = ""
    beside: tuple[Place, ...] = ()

    @classmethod
    def of(cls, path: Place, name: str, beside: Iterable[Place] = (), stamp: str = "") -> Entry:
        """The entry of a file, under a name that any table can hold, with the files beside it that belong to its item."""
        others = tuple(beside)
        stats = [each.stat() for each in (path, *others)]
        latest = max(stat.st_mtime_ns for stat in stats), max(stat.st_ctime_ns for stat in stats)
        return cls(printable(name), sum(stat.st_size for stat in stats), latest[0], path, latest[1], stamp, others)

    @property
    def state(self) -> tuple[int, int, int]:
        """What differs when its files do."""
        return self.size, self.mtime, self.ctime


@dataclass(frozen=True)
class Source:
    """A listing: class names, entries in order, the items of an entry, and a hash of an entry's content.

    ``single`` sources hold one item an entry.  ``check`` raises before work starts when a class has nothing usable.
    ``captioned`` sources have texts of their own; ``names`` and ``phrases`` are what a class is called, and a caption made of that.
    ``how`` says for people where classes, captions and splits come from; ``licence`` is that of the items, where the source knows it.
    ``parts`` are the names of those of a blend, and of each whether its classes take turns in the order of its rows; all
    items are of one without a name elsewhere.
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
    how: str = ""
    licence: str = ""
    parts: tuple[tuple[str, bool], ...] = (("", False),)

    def caption(self, item: Item, captions: str) -> str | None:
        """The text of an item under ``data.captions``: its own, made of its class, or none."""
        return caption_of(item, captions, self.names, self.phrases)

    def of_class(self, label: str, captions: str) -> str | None:
        """The text that ``data.captions`` makes of a class."""
        return caption_of_class(label, captions, self.names, self.phrases)


def caption_of(item: Item, captions: str, names: Mapping[str, str], phrases: Mapping[str, str]) -> str | None:
    """The text of an item under ``data.captions``, with the names of the classes and the phrases made of them."""
    if captions == "source" or item.label is None:
        return item.caption
    return caption_of_class(item.label, captions, names, phrases)


def caption_of_class(label: str, captions: str, names: Mapping[str, str], phrases: Mapping[str, str]) -> str | None:
    """The text that ``data.captions`` makes of a class."""
    if captions in ("source", "none"):
        return None
    name = names.get(label, label.replace("_", " "))
    return phrases.get(label, name) if captions == "names" else captions.replace("{name}", name)


def shown(entry: Entry, item: Item) -> str:
    """Where an item is, for people: an absolute path where there is one."""
    if entry.path is None:
        return item.source
    return printable(str(entry.path if item.source == entry.name else entry.path.parent / item.source))


def printable(name: str) -> str:
    """A name as text that can be stored: bytes that are not UTF-8 are written as ``\\xff``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") if storable(name, escaped=True) else repr(name)[1:-1]


def storable(text: str, escaped: bool = False) -> bool:
    """Whether a text is UTF-8 (``escaped``: or holds bytes of a name that is not)."""
    try:
        text.encode("utf-8", "surrogateescape" if escaped else "strict")
    except UnicodeEncodeError:
        return False
    return True


def natural(name: str) -> tuple[Any, ...]:
    """Sort key under which "2" comes before "10", and by which no two names are equal."""
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    numbers = [part.lstrip("0") for part in parts]
    # A number of more digits is larger; it need not be one that Python would convert.
    key = [(0, len(number), number) if part[0] in "0123456789" else (1, 0, part) for part, number in zip(parts, numbers)]
    return tuple(key), name


def turns(groups: Sequence[Any]) -> list[Any]:
    """The first of each group, then the second of each, and so on."""
    longest = max((len(group) for group in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def changed(entries: Iterable[Entry]) -> list[str]:
    """Names of entries whose files are no longer as they were listed."""
    listed = [entry for entry in entries if entry.path is not None]
    far = {place: place for entry in listed for place in (entry.path, *entry.beside) if isinstance(place, Far)}
    now: dict[Any, Any] = dict(zip(far, again(far)))
    return [entry.name for entry in listed if not _as_listed(entry, now)]


def _as_listed(entry: Entry, now: Mapping[Any, Any]) -> bool:
    if entry.mtime == 0 and entry.size == 0:
        return True  # it could not be looked at
    places = [now.get(place, place) for place in (entry.path, *entry.beside)]
    if any(place is None for place in places):
        return False
    try:
        found = Entry.of(places[0], entry.name, places[1:])
    except OSError:
        return False
    if any(isinstance(place, Far) and place.recent for place in (entry.path, *entry.beside)):
        return (found.size, found.mtime) == (entry.size, entry.mtime)
    return found.state == entry.state


def file_digest(entry: Entry) -> str:
    """SHA-256 of an entry's file, and of what its items depend on besides."""
    if entry.path is None:
        raise StepError(f"{entry.name}: not a file")
    with opened(entry.path) as file:
        content = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
    return stamped(content, entry.stamp)


def stamped(digest: str, stamp: str) -> str:
    """A hash that covers a stamp as well, if there is one."""
    return hashlib.sha256(f"{digest}\0{stamp}".encode("utf-8", "surrogateescape")).hexdigest() if stamp else digest


def split_of(key: str, config: DataConfig) -> str:
    """The split of an item: a keyed hash of its key, whatever else there is."""
    point = int.from_bytes(hashlib.sha256(f"{config.seed}\x1f{key}".encode()).digest()[:8], "big") / 2.0**64
    return "test" if point < config.test else "validation" if point < config.test + config.validation else "train"

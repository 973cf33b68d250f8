"""Folders of images: a folder a class, splits above them where they are named so, captions and labels beside the images.

Captions and labels stand in ``x.txt`` beside ``x.png``, or in a table ``metadata.csv`` or ``metadata.jsonl`` with a column
``file_name`` (the form of the hub's image folders).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import IN_TURNS, ONE_CLASS, Entry, Item, Source, looked, natural, printable, stamped, storable, turns
from tokenloom.tasks.data.reading import ReadError, attempted, file_bytes, passing, said
from tokenloom.tasks.modalities.image.formats import IMAGE_SUFFIXES
from tokenloom.tasks.modalities.image.labels import Place, Places, Wanted, label_of, stamp_of, text_of

TABLES = ("metadata.csv", "metadata.jsonl")
#: Files and folders that systems leave behind.
_OF_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx", "lost+found", "@eadir", "$recycle.bin", "system volume information"}


@dataclass(frozen=True)
class Known:
    """What is known of one entry: its files, its place, its row of a table, and why it is no file (and whether that may pass)."""

    path: Path
    beside: list[Path]
    place: Place
    row: Mapping[str, Any]
    odd: str | None = None
    retry: bool = False


def folder_source(where: str, wanted: Wanted) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.folder``."""
    base, here = Path(where).expanduser().absolute(), f"data.source folder:{where}"
    if not base.is_dir():
        raise ConfigError(f"{here}: no such folder{looked(where)}")
    found = walk(base, tuple(wanted.columns.values()), here)
    table = Table.read(found.tables, wanted)
    images = [path for path in found.files if path.suffix.lower() in IMAGE_SUFFIXES]
    places = Places.found((path.relative_to(base).parts[:-1] for path in images), wanted, here)
    known: dict[str, Known] = {}
    by_class: dict[str, list[Entry]] = {}
    for path in sorted([*found.files, *found.odd], key=lambda path: natural(path.as_posix())):
        inside = path.relative_to(base)
        odd, retry = found.odd.get(path, (None, False))
        place, row = table.place(path, places.of(inside.parts[:-1], printable(inside.as_posix()), wanted))
        one = Known(path, found.files.get(path, []), place, row, odd, retry)
        entry = _entry(inside, one)
        known[entry.name] = one
        by_class.setdefault(place.label or "", []).append(entry)
    _check_classes(base, by_class, places, here)

    def check() -> None:
        for name, entries in by_class.items():
            if name and not any(_opens(entry) for entry in entries):
                raise ConfigError(f"{here}: {base / name if places.classed else base} has no usable image; fill or remove it")

    def items(entry: Entry) -> Iterator[Item]:
        yield _item(entry, known[entry.name], wanted)

    def digest(entry: Entry) -> str:
        item = next(items(entry))
        if item.retry:
            raise ReadError(item.problem or "")
        return stamped(attempted(lambda: single_digest(item, item.read())), entry.stamp)

    texts = table.captioned or any(file.suffix == ".txt" for one in known.values() for file in one.beside)
    how = "; ".join(part for part in (places.how, table.how(found)) if part)
    ordered = tuple(turns([by_class[name] for name in sorted(by_class, key=natural)]))
    classes = tuple(name for name in sorted(by_class, key=natural) if name)
    return Source(classes, ordered, items, digest, single=True, check=check, captioned=texts, how=how, parts=IN_TURNS)


def _entry(inside: Path, one: Known) -> Entry:
    """The entry of a file; its stamp holds what its own path does not say."""
    name, place = inside.as_posix(), one.place
    usual = Place(inside.parts[0] if len(inside.parts) > 1 else ONE_CLASS)
    plain = place == usual and not one.row and one.odd is None
    stamp = "" if plain else stamp_of(place.label, place.split, place.problem, sorted(one.row.items()), one.odd)
    try:
        return Entry.of(one.path, name, one.beside, stamp)
    except OSError:
        return Entry(printable(name), 0, 0, one.path, stamp=stamp)  # its item says why


def _item(entry: Entry, one: Known, wanted: Wanted) -> Item:
    path, text, problem, retry = one.path, one.row.get("caption"), one.odd, one.retry
    if problem is None and not storable(path.name):
        problem = "its name is not UTF-8: rename it"
    if problem is None and path.suffix.lower() not in IMAGE_SUFFIXES:
        problem = f"not an image format ({path.suffix or 'no suffix'})"
    problem = problem or one.place.problem
    if text is not None and not isinstance(text, str):
        text, problem = None, problem or f"its caption is no text: {text!r}"
    notes = [file for file in one.beside if file.suffix.lower() == ".txt"]
    try:
        text = text_of(file_bytes(notes[0]), f"its caption {notes[0].name}") if notes else text
    except ReadError as error:
        problem, retry = problem or f"its caption {notes[0].name} {error}", problem is None
    except ValueError as error:
        problem = problem or str(error)
    columns = {name: file for name, end in wanted.columns.items() if (file := path.with_suffix(end)) in one.beside}
    reads = {name: partial(file_bytes, file) for name, file in columns.items()}
    read = (lambda: b"") if one.odd else partial(file_bytes, path)
    return Item(entry.name, read, one.place.label, text, entry.name, problem, reads, one.place.split, retry)


def single_digest(item: Item, raw: bytes | np.ndarray) -> str:
    """Hash of the only image of an entry, with its caption and its columns."""
    content = raw if isinstance(raw, bytes) else raw.tobytes()
    beside = b"".join(b"\0" + name.encode() + b"\0" + read() for name, read in item.columns.items())
    return hashlib.sha256(content + b"\0" + (item.caption or "").encode("utf-8", "surrogatepass") + beside).hexdigest()


@dataclass
class Found:
    """What a walk finds: files with those beside them, what is no file (why, and whether it may pass), and tables of captions."""

    files: dict[Path, list[Path]] = field(default_factory=dict)
    odd: dict[Path, tuple[str, bool]] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)


def walk(base: Path, ends: tuple[str, ...], where: str) -> Found:
    """All files below a folder, through links; hidden ones and those that systems leave are passed over.

    Raises:
        ConfigError: a folder that cannot be read, with its name.
    """

    def unreadable(error: OSError) -> None:
        raise ConfigError(
            f"{where}: the folder {printable(str(error.filename))} cannot be read ({said(error)}): give the right to, or move it"
        )

    found = Found()
    for here, folders, names in os.walk(base, onerror=unreadable, followlinks=True):
        folder = Path(here)
        for inner in [name for name in folders if os.path.islink(folder / name)]:
            if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(folder / inner)):
                found.odd[folder / inner] = "a link to a folder that holds it: it would never end", False
                folders.remove(inner)
        folders[:] = sorted(name for name in folders if not _passed_over(name))
        here_too = set(names)
        for name in sorted(names):
            if _passed_over(name) or name.lower().endswith(".txt") or name.endswith(ends or "/"):
                continue
            if name in TABLES:
                found.tables.append(folder / name)
            elif problem := _no_file(folder / name):
                found.odd[folder / name] = problem
            else:
                path = folder / name
                others = [path.with_suffix(end) for end in (".txt", ".TXT", *ends)]
                found.files[path] = [other for other in others if other.name in here_too]
    return found


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _no_file(path: Path) -> tuple[str, bool] | None:
    """Why a name in a folder cannot be read as a file, and whether that may pass."""
    try:
        return None if stat.S_ISREG(attempted(lambda: os.stat(path)).st_mode) else ("neither a file nor a folder", False)
    except ReadError as error:
        return (f"a link to {printable(os.readlink(path))}, which is not there", True) if path.is_symlink() else (str(error), True)


def _check_classes(base: Path, by_class: Mapping[str, list[Entry]], places: Places, where: str) -> None:
    """Raise ``ConfigError`` for a folder of a class without an image, and for a source without any."""
    tops = [base / split for split in places.splits] or [base]
    empty = [] if any(by_class) else [base]
    for top in tops:
        names = [each for each in sorted(top.iterdir()) if each.is_dir() and not _passed_over(each.name)] if places.classed else []
        empty += [each for each in names if each.name not in by_class and storable(each.name) and not _holds(each)]
    for name, entries in by_class.items():
        if name and not any(entry.path and entry.path.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
            empty.append(base / name if places.classed else base)
    if empty:
        raise ConfigError(f"{where}: {empty[0]} has no image; fill or remove it")


def _holds(folder: Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder, followlinks=False) for name in names)


def _opens(entry: Entry) -> bool:
    from PIL import Image

    try:
        with Image.open(entry.path):  # type: ignore[arg-type]
            return True
    except Exception as error:  # what a damaged file raises; one that cannot be read now says nothing
        return passing(error)


@dataclass(frozen=True)
class Table:
    """Rows of ``metadata.csv`` and ``metadata.jsonl`` by the file that they are about."""

    rows: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    labelled: bool = False
    captioned: bool = False
    said: tuple[str, ...] = ()

    @classmethod
    def read(cls, paths: list[Path], wanted: Wanted) -> Table:
        """All tables of a source.

        Raises:
            ConfigError: one that is no table of files.
        """
        rows: dict[Path, Mapping[str, Any]] = {}
        labelled, captioned, parts = False, False, list[str]()
        for path in paths:
            listed = table_rows(path)
            names = list(dict.fromkeys(name for row in listed for name in row))
            label, caption = wanted.label(names, str(path)), wanted.caption(names, str(path))
            labelled, captioned = labelled or label is not None, captioned or caption is not None
            parts += [
                f"{path.name}: "
                + ", ".join([f"{what} from {column}" for what, column in (("labels", label), ("captions", caption)) if column])
            ]
            for row in listed:
                chosen = {"label": row.get(label) if label else None, "caption": (row.get(caption) or None) if caption else None}
                rows[Path(os.path.normpath(path.parent / str(row["file_name"])))] = {k: v for k, v in chosen.items() if v is not None}
        return cls(rows, labelled, captioned, tuple(parts))

    def place(self, path: Path, place: Place) -> tuple[Place, Mapping[str, Any]]:
        """An image's place with the label that its row gives it, and that row."""
        row = self.rows.get(path, {})
        if not self.labelled:
            return place, row
        value = row.get("label")
        if value is not None and not isinstance(value, (int, str)):
            return Place(None, place.split, f"its label is neither a whole number nor a text: {value!r}"), row
        problem = None if value is not None else "no label in the table of the images"
        return Place(label_of(value), place.split, problem), row

    def how(self, found: Found) -> str:
        """Where captions and labels come from, and rows of files that are not there."""
        missing = [path for path in self.rows if path not in found.files and path not in found.odd]
        told = [f"{len(missing)} rows of files that are not there (first: {missing[0].name})"] if missing else []
        return "; ".join([*self.said, *told])


def table_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a table of files, each with its ``file_name``.

    Raises:
        ConfigError: not such a table, naming the line.
    """
    try:
        text = text_of(attempted(path.read_bytes), str(path)) or ""
        if path.suffix == ".csv":
            rows = [{k: v for k, v in row.items() if k is not None} for row in csv.DictReader(io.StringIO(text))]
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: not a table of images and captions: {said(error)}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ConfigError(f"{path}: row {number} has no file_name, the image that it is about")
    return rows

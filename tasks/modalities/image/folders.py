"""Folders of images: a folder a class, splits above them where they are named so, captions and labels beside the images.

Captions and labels stand in ``x.txt`` beside ``x.png``, or in a table ``metadata.csv`` or ``metadata.jsonl`` with a column
``file_name`` (the form of the hub's image folders).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import IN_TURNS, ONE_CLASS, Entry, Item, Source, looked, natural, printable, stamped, storable, turns
from tokenloom.tasks.data.reading import ReadError, attempted, file_bytes, nothing, opened, passing, said
from tokenloom.tasks.modalities.image.file_tables import TABLES, Table
from tokenloom.tasks.modalities.image.formats import IMAGE_SUFFIXES
from tokenloom.tasks.modalities.image.labels import Place, Places, Wanted, stamp_of, text_of
from tokenloom.tasks.sources.far import Far, below, placed, relative
from tokenloom.tasks.sources.far import Place as File

#: Files and folders that systems leave behind.
_OF_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx", "lost+found", "@eadir", "$recycle.bin", "system volume information"}


@dataclass(frozen=True)
class Known:
    """What is known of one entry: its files, its place, its row of a table, and why it is no file (and whether that may pass)."""

    path: File
    beside: list[File]
    place: Place
    row: Mapping[str, Any]
    odd: str | None = None
    retry: bool = False
    columns: Mapping[str, File] = field(default_factory=dict)


def folder_source(where: str, wanted: Wanted) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.folder``."""
    base, here = placed(where), f"data.source folder:{where}"
    if isinstance(base, Path) and not base.is_dir():
        raise ConfigError(f"{here}: no such folder{looked(where)}")
    found = walk(base, tuple(wanted.columns.values()), here)
    table = Table.read(found.tables, wanted)
    images = [path for path in found.files if path.suffix.lower() in IMAGE_SUFFIXES]
    places = Places.found((relative(path, base).parts[:-1] for path in images), wanted, here)
    known: dict[str, Known] = {}
    by_class: dict[str, list[Entry]] = {}
    for path in sorted([*found.files, *found.odd], key=lambda path: natural(path.as_posix())):
        inside = relative(path, base)
        odd, retry = found.odd.get(path, (None, False))
        key = printable(inside.as_posix())
        place, row = table.place(path, places.of(inside.parts[:-1], key, wanted), key, wanted)
        others = {file.name: file for file in found.files.get(path, [])}
        columns = {name: others[end] for name, end in _ends(path, wanted).items() if end in others}
        one = Known(path, list(others.values()), place, row, odd, retry, columns)
        entry = _entry(inside, one)
        known[entry.name] = one
        by_class.setdefault(place.label or "", []).append(entry)
    _check_classes(base, by_class, places, here)

    def check() -> None:
        for name, entries in by_class.items():
            if name and not any(_opens(entry) for entry in entries):
                raise ConfigError(f"{here}: {base / name if places.classed else base} has no usable image; fill or remove it")

    def items(entry: Entry) -> Iterator[Item]:
        yield item_of(entry, known[entry.name])

    def digest(entry: Entry) -> str:
        item = next(items(entry))
        if item.retry:
            raise ReadError(item.problem or "")
        return stamped(attempted(lambda: single_digest(item, item.read())), entry.stamp)

    texts = table.captioned or any(file.suffix == ".txt" for one in known.values() for file in one.beside)
    how = "; ".join(part for part in (places.how, table.how({*found.files, *found.odd})) if part)
    ordered = tuple(turns([by_class[name] for name in sorted(by_class, key=natural)]))
    classes = tuple(name for name in sorted(by_class, key=natural) if name)
    return Source(classes, ordered, items, digest, single=True, check=check, captioned=texts, how=how, parts=IN_TURNS)


def _ends(path: File, wanted: Wanted) -> dict[str, str]:
    """Names of the files that hold the columns of an image."""
    return {name: path.with_suffix(end).name for name, end in wanted.columns.items()}


def _entry(inside: PurePath, one: Known) -> Entry:
    """The entry of a file; its stamp holds what its own path does not say."""
    name, place = inside.as_posix(), one.place
    usual = Place(inside.parts[0] if len(inside.parts) > 1 else ONE_CLASS)
    plain = place == usual and not one.row and one.odd is None
    stamp = "" if plain else stamp_of(place.label, place.split, place.problem, sorted(one.row.items()), one.odd)
    try:
        return Entry.of(one.path, name, one.beside, stamp)
    except OSError:
        return Entry(printable(name), 0, 0, one.path, stamp=stamp)  # its item says why


def item_of(entry: Entry, one: Known) -> Item:
    """The item of an entry that is one file."""
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
    reads = {name: partial(file_bytes, file) for name, file in one.columns.items()}
    read = nothing if one.odd else partial(file_bytes, path)
    return Item(entry.name, read, one.place.label, text, entry.name, problem, reads, one.place.split, retry)


def single_digest(item: Item, raw: bytes | np.ndarray) -> str:
    """Hash of the only image of an entry, with its caption and its columns."""
    content = raw if isinstance(raw, bytes) else raw.tobytes()
    beside = b"".join(b"\0" + name.encode() + b"\0" + read() for name, read in item.columns.items())
    return hashlib.sha256(content + b"\0" + (item.caption or "").encode("utf-8", "surrogatepass") + beside).hexdigest()


@dataclass
class Found:
    """What a walk finds: files with those beside them, what is no file (why, and whether it may pass), and tables of captions."""

    files: dict[File, list[File]] = field(default_factory=dict)
    odd: dict[File, tuple[str, bool]] = field(default_factory=dict)
    tables: list[File] = field(default_factory=list)


def walk(base: File, ends: tuple[str, ...], where: str) -> Found:
    """All files below a folder, through links; hidden ones and those that systems leave are passed over.

    Raises:
        ConfigError: a folder that cannot be read, with its name.
    """

    if isinstance(base, Far):
        return _walk_far(base, ends, where)

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


def _walk_far(base: Far, ends: tuple[str, ...], where: str) -> Found:
    """The same of a folder elsewhere, from a listing of all that is below it."""
    try:
        listed = {file.path: file for file in attempted(lambda: below(base))}
    except ReadError as error:
        raise ConfigError(f"{where}: cannot be listed: {said(error)}") from error
    if not listed:
        raise ConfigError(f"{where}: no such folder, or nothing in it")
    found = Found()
    for path, file in listed.items():
        if any(_passed_over(part) for part in file.relative_to(base).parts) or path.lower().endswith(".txt") or path.endswith(ends or "/"):
            continue
        if file.name in TABLES:
            found.tables.append(file)
        else:
            others = [str(PurePosixPath(path).with_suffix(end)) for end in (".txt", ".TXT", *ends)]
            found.files[file] = [listed[other] for other in others if other in listed]
    return found


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _no_file(path: Path) -> tuple[str, bool] | None:
    """Why a name in a folder cannot be read as a file, and whether that may pass."""
    try:
        return None if stat.S_ISREG(attempted(lambda: os.stat(path)).st_mode) else ("neither a file nor a folder", False)
    except ReadError as error:
        return (f"a link to {printable(os.readlink(path))}, which is not there", True) if path.is_symlink() else (str(error), True)


def _check_classes(base: File, by_class: Mapping[str, list[Entry]], places: Places, where: str) -> None:
    """Raise ``ConfigError`` for a folder of a class without an image, and for a source without any."""
    tops = [base / split for split in places.splits] or [base]
    empty = [] if any(by_class) else [base]
    for top in tops:
        inner = sorted(top.iterdir()) if places.classed and isinstance(top, Path) else []  # there are no empty folders elsewhere
        names = [each for each in inner if each.is_dir() and not _passed_over(each.name)]
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
        with opened(entry.path) as file, Image.open(file):  # type: ignore[arg-type]
            return True
    except Exception as error:  # what a damaged file raises; one that cannot be read now says nothing
        return passing(error)

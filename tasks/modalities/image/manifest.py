"""Sources of manifests: a table with a row an image, which may lie anywhere, with its label, caption, split and further columns."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import IN_TURNS, ONE_CLASS, Entry, Item, Source, natural, printable, stamped, turns
from tokenloom.tasks.data.reading import ReadError, attempted, said
from tokenloom.tasks.modalities.image.file_tables import plain_rows
from tokenloom.tasks.modalities.image.folders import Known, item_of, single_digest
from tokenloom.tasks.modalities.image.labels import Place, Wanted, label_of, named_splits, split_of_value, stamp_of
from tokenloom.tasks.modalities.image.tables import parquet_file
from tokenloom.tasks.sources.far import Far, again, below
from tokenloom.tasks.sources.far import Place as File

ENDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_FILES = ("path", "file_name", "filename", "file", "image", "url", "uri", "key")
_NEAR = 16  # files of one folder elsewhere from which on the folder is listed


def manifest_source(where: str, paths: Sequence[File], wanted: Wanted) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.manifest``."""
    known: dict[str, Known] = {}
    by_class: dict[str, list[Entry]] = {}
    told: dict[str, None] = {}
    captioned = False
    rows = [(path, number, row) for path in paths for number, row in enumerate(_rows(where, path), 1)]
    columns = {path: _Columns(where, path, [row for each, _, row in rows if each is path], wanted) for path in paths}
    splits = {path: each.splits for path, each in columns.items()}
    files = _located([file for path, _, row in rows for file in columns[path].files(row)])
    for path, number, row in rows:
        one = columns[path]
        label, caption, split = one.values(row)
        name = str(row.get(one.file) or "") if one.file is not None else ""
        key = printable(name) if name and name not in known else f"{path.name}#{number}"
        mine = one.files(row)
        odd, retry = (None, False) if mine else (f"no file {printable(name)} can be" if name else "no file in this row", False)
        if name and key != printable(name):
            odd = f"its file {printable(name)} stands in an earlier row too"
        elif not odd:
            odd, retry = _missing(mine, files, path)
        place = Place(ONE_CLASS) if one.label is None else _place(label)
        if split is not None:
            place = replace(place, split=split_of_value(splits[path], split, key, wanted))
        there = [files.get(file) or file for file in mine]
        beside = dict(zip(one.names(row), there[1:]))
        known[key] = Known(
            there[0] if there else path, list(beside.values()), place, {"caption": caption} if caption else {}, odd, retry, beside
        )
        stamp = stamp_of(place.label, place.split, place.problem, caption, odd)
        try:
            entry = Entry.of(known[key].path, key, known[key].beside if not odd else [], stamp)
        except OSError:
            entry = Entry(key, 0, 0, known[key].path, stamp=stamp)
        by_class.setdefault(place.label or "", []).append(entry)
        captioned = captioned or one.caption is not None
        told[one.told] = None

    def items(entry: Entry) -> Iterator[Item]:
        yield item_of(entry, known[entry.name])

    def digest(entry: Entry) -> str:
        item = next(items(entry))
        if item.retry:
            raise ReadError(item.problem or "")
        return stamped(attempted(lambda: single_digest(item, item.read())), entry.stamp)

    classes = tuple(name for name in sorted(by_class, key=natural) if name)
    ordered = tuple(turns([by_class[name] for name in sorted(by_class, key=natural)]))
    return Source(classes, ordered, items, digest, single=True, captioned=captioned, how="; ".join(told), parts=IN_TURNS)


def _rows(where: str, path: File) -> list[dict[str, Any]]:
    try:
        rows = parquet_file(path).read().to_pylist() if path.suffix.lower() == ".parquet" else plain_rows(path)
    except (pa.ArrowException, OSError, ValueError, RecursionError, csv.Error) as error:
        raise ConfigError(f"data.source manifest:{where}: {path} cannot be read as a table: {said(error)}") from error
    if odd := next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
        raise ConfigError(f"data.source manifest:{where}: row {odd} of {path} holds no names with values")
    if not rows:
        raise ConfigError(f"data.source manifest:{where}: {path} has no row")
    return rows


class _Columns:
    """Which columns of one manifest hold what."""

    def __init__(self, where: str, path: File, rows: Sequence[dict[str, Any]], wanted: Wanted) -> None:
        self._path, self._wanted = path, wanted
        names, here = list(dict.fromkeys(name for row in rows for name in row)), f"data.source manifest:{where}: {path}"
        given = wanted.config.image_column
        self.file = given if given in names else next((name for name in _FILES if name in names), None) if given is None else None
        if self.file is None:
            what = f"column {given!r} (data.image_column)" if given else f"column {', '.join(_FILES[:-1])} or {_FILES[-1]}"
            raise ConfigError(f"{here}: no {what}, the file of an image; it has {', '.join(names)}")
        self.label, self.caption, self.split = (choose(names, here) for choose in (wanted.label, wanted.caption, wanted.split))
        self.splits = named_splits((row.get(self.split) for row in rows), self.split, here) if self.split else {}
        if absent := [f"data.columns.{name}={column!r}" for name, column in wanted.columns.items() if column not in names]:
            raise ConfigError(f"{absent[0]}: {path} has no such column; it has {', '.join(names)}")
        held = (("files", self.file), ("labels", self.label), ("captions", self.caption), ("splits", self.split if self.splits else None))
        self.told = f"{path.name}: " + ", ".join(f"{what} from column {column}" for what, column in held if column)

    def names(self, row: dict[str, Any]) -> list[str]:
        """Names of the further columns that a row has."""
        return [name for name, column in self._wanted.columns.items() if row.get(column)]

    def values(self, row: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Label, caption and split of a row."""
        return tuple(row.get(name) if name else None for name in (self.label, self.caption, self.split))  # type: ignore[return-value]

    def files(self, row: dict[str, Any]) -> list[File]:
        """The file of a row and those of its further columns; none where it names no file."""
        assert self.file is not None
        given = [row.get(self.file), *(row[self._wanted.columns[name]] for name in self.names(row))]
        return [self._file(str(name)) for name in given] if given[0] and all(map(_usable, given)) else []

    def _file(self, name: str) -> File:
        if re.match(r"(s3|gs|https?|hf)://.", name):
            return Far.parse(name)
        if name.startswith("file://"):
            name = unquote(name.removeprefix("file://"))
        if "\\" in name and not (isinstance(self._path, Path) and (self._path.parent / name).exists()):
            name = name.replace("\\", "/")  # as another system writes paths
        if isinstance(self._path, Far) and name.startswith("/"):
            return Path(name)
        return self._path.parent / name


def _usable(name: Any) -> bool:
    """Whether a file can have this name: no zero byte, no half of a character."""
    return "\0" not in str(name) and str(name).encode(errors="replace").decode() == str(name)


def _place(label: Any) -> Place:
    if label is not None and not isinstance(label, (int, str)):
        return Place(None, None, f"its label is neither a whole number nor a text: {label!r}")
    return Place(label_of(label))


def _missing(mine: Sequence[File], files: dict[File, File | None], path: File) -> tuple[str | None, bool]:
    """Why a row cannot be used, as far as its files say, and whether that may pass."""
    for file in mine:
        if isinstance(path, Far) and isinstance(file, Path):
            return f"{file} lies on this machine, and the manifest elsewhere", False
        if isinstance(file, Far) and files.get(file) is None:
            return f"{printable(str(file))} is not there", True
        if isinstance(file, Path) and not file.is_file():
            return f"{printable(str(file))} is not there", True
    return None, False


def _located(wanted: Sequence[File]) -> dict[File, File | None]:
    """Files elsewhere with what is known of them, None of those that are not there: by lists of folders where many are in one."""
    near: defaultdict[Far, list[Far]] = defaultdict(list)
    for file in dict.fromkeys(wanted):
        if isinstance(file, Far):
            near[file.parent].append(file)
    found: dict[File, File | None] = {}
    single: defaultdict[str, list[Far]] = defaultdict(list)
    for folder, mine in near.items():
        if folder.scheme in ("s3", "gs") and len(mine) >= _NEAR and folder.path:
            there = {file: file for file in attempted(lambda folder=folder: below(folder, deep=False))}  # type: ignore[misc]
            found |= {file: there.get(file) for file in mine}
        else:
            single[f"{folder.scheme} {folder.anonymous}"] += mine
    for mine in single.values():
        found |= dict(zip(mine, attempted(lambda mine=mine: again(mine))))  # type: ignore[misc]
    return found

"""Sources of Parquet files: a row an image, with its label and caption in columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, file_digest, natural
from tokenloom.tasks.modalities.image.labels import (
    Wanted,
    check_caption_type,
    check_label_type,
    file_splits,
    label_of,
    named_splits,
    split_of_file,
    split_of_value,
    stamp_of,
)
from tokenloom.tasks.sources.far import Far, Place


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names that the library ``datasets`` keeps in a Parquet file's metadata."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None


def image_bytes(value: Any, where: str) -> bytes:
    """The bytes of an image cell; raises ``ValueError`` where it holds none."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            raise ValueError(
                f"{where} holds the path of a file ({value['path']}) and no bytes: list the files in a manifest (manifest:FILE)"
            )
        value = value.get("bytes")
    if isinstance(value, list) and value and all(type(each) is int and 0 <= each < 256 for each in value):
        value = bytes(value)
    if not isinstance(value, bytes):
        raise ValueError(f"{where} holds no image bytes")
    return value


def texts(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column; a text that is not UTF-8 stays bytes."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return list(column.to_pylist())
    plain = column.cast(kind) if pa.types.is_dictionary(column.type) else column
    return [_decoded(value) for value in plain.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


@dataclass(frozen=True)
class Columns:
    """Where a file holds what: columns of images, labels and captions, class names of numbers, and whether labels are numbers."""

    image: str
    label: str | None
    caption: str | None
    names: list[str] | None
    numbered: bool
    split: str | None = None
    stamp: str = ""  # of names that come from other files


def parquet_source(where: str, paths: list[Place], wanted: Wanted, given_splits: Mapping[Place, str] | None = None) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.parquet``; ``given_splits`` are of files whose names do not say them."""
    known = _columns(where, paths, wanted)
    splits = file_splits(paths, wanted) if given_splits is None else given_splits

    def column(path: Place, name: str | None) -> list[Any]:
        file = _open(where, path)
        if name is None:
            return [None] * file.metadata.num_rows
        try:
            return texts(file.read([name])[name])
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"data.source parquet:{where}: {path}: column {name!r} cannot be read: {error}") from error

    @cache
    def labels(path: Place) -> list[Any]:
        one = known[path]
        return [ONE_CLASS if one.label is None else _label(value, one.names) for value in column(path, one.label)]

    def items(entry: Entry) -> Iterator[Item]:
        path = entry.path
        assert path is not None
        one, file, classes = known[path], _open(where, path), labels(path)
        captions, parts = column(path, one.caption), column(path, one.split)
        given = {name: file.read([column])[column].is_valid().to_pylist() for name, column in wanted.columns.items()}
        row = 0
        for number in range(file.metadata.num_row_groups):
            for within in range(file.metadata.row_group(number).num_rows):
                read = partial(cell, path, number, within, row, one.image)
                beside = {
                    name: partial(cell, path, number, within, row, column) for name, column in wanted.columns.items() if given[name][row]
                }
                key = f"{entry.name}#{row:07d}"
                made = cell_item(key, f"{entry.name}#{row}", read, classes[row], captions[row], beside)
                split = split_of_value(told_splits, parts[row], key, wanted) or split_of_file(splits, path, key, wanted)
                yield replace(made, split=split)
                row += 1

    found = {name for path in paths for name in labels(path) if isinstance(name, str)}
    told_splits = {}
    if any(one.split for one in known.values()):
        every = (value for path in paths for value in set(column(path, known[path].split)))
        told_splits = named_splits(every, next(one.split for one in known.values() if one.split), f"data.source parquet:{where}")
    extra = stamp_of(sorted(told_splits.items())) if told_splits else ""  # which splits there are decides what is held out of the first
    entries = tuple(Entry.of(path, path.name, stamp=known[path].stamp + splits.get(path, "") + extra) for path in paths)
    check_names(where, entries)
    captioned = any(one.caption for one in known.values())
    first = known[paths[0]]
    how = told(first.label, first.caption, first.names) + (", splits by file" if splits else "")
    how += f", splits from column {first.split}" if told_splits else ""
    return Source(tuple(sorted(found, key=natural)), entries, items, file_digest, captioned=captioned, how=how)


@lru_cache(maxsize=4)
def _group(path: Place, _state: Any, number: int, column: str) -> pa.ChunkedArray:
    """A column of a row group; a few stay in memory, not the file."""
    return parquet_file(path).read_row_group(number, columns=[column])[column]


def cell(path: Place, number: int, within: int, row: int, column: str) -> bytes:
    """The bytes of an image in a row of a row group; raises ``ValueError`` where there are none."""
    state = path.stat()
    found = _group(path, (state.st_size, state.st_mtime_ns, state.st_ctime_ns), number, column)
    return image_bytes(found[within].as_py(), f"{path}#{row}")


def parquet_file(path: Place) -> pq.ParquetFile:
    """A Parquet file, wherever it is."""
    return pq.ParquetFile(path.native(), pre_buffer=True) if isinstance(path, Far) else pq.ParquetFile(path)


def told(label: str | None, caption: str | None, names: Any = None) -> str:
    """Which columns labels and captions come from, for people."""
    parts = [f"labels from column {label}{' with its class names' if names else ''}"] if label else ["no label column"]
    return ", ".join([*parts, *([f"captions from column {caption}"] if caption else [])])


def cell_item(key: str, place: str, read: Callable[[], bytes], label: Any, caption: Any, beside: Any = None) -> Item:
    """The item of a row; bytes where a text should be were not UTF-8."""
    problem = None
    for what, value in (("label", label), ("caption", caption)):
        if isinstance(value, bytes):
            problem = problem or f"its {what} is not UTF-8: {value!r}"
    text = caption if isinstance(caption, str) else None
    return Item(key, read, label if isinstance(label, str) else None, text, place, problem, beside or {})


def _label(value: Any, names: list[str] | None) -> str | bytes | None:
    return value if isinstance(value, bytes) else label_of(value, names)


def _open(where: str, path: Place) -> pq.ParquetFile:
    try:
        return parquet_file(path)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"data.source parquet:{where}: {path} is not a whole Parquet file: {error}") from error


def _columns(where: str, paths: list[Place], wanted: Wanted) -> dict[Place, Columns]:
    """The columns of all files, which have to agree on what a label is.

    Raises:
        ConfigError: a column that is missing, of a doubtful type, or not the same in all files.
    """
    known: dict[Place, Columns] = {}
    for path in paths:
        schema, place = _open(where, path).schema_arrow, f"data.source parquet:{where}: {path}"
        image, label, caption = (choose(schema.names, place) for choose in (wanted.image, wanted.label, wanted.caption))
        assert image is not None
        if absent := [f"data.columns.{name}={column!r}" for name, column in wanted.columns.items() if column not in schema.names]:
            raise ConfigError(f"{absent[0]}: {path} has no such column; it has {', '.join(schema.names)}")
        if label is not None:
            check_label_type(schema.field(label).type, label, place)
        if caption is not None:
            check_caption_type(schema.field(caption).type, caption, place)
        split = wanted.split(schema.names, place)
        numbered = label is not None and pa.types.is_integer(schema.field(label).type)
        known[path] = Columns(image, label, caption, class_names(schema, label) if label else None, numbered, split)
    first, columns = paths[0], known[paths[0]]
    for path, one in known.items():
        if one.label != columns.label:
            has = [f"{each.name} has {known[each].label or 'none'}" for each in (first, path)]
            raise ConfigError(
                f"data.source parquet:{where}: the label column is not the same: {', '.join(has)}; name it in data.label_column"
            )
    return {path: _named(where, path, known) for path in known}


def _named(where: str, path: Place, known: dict[Place, Columns]) -> Columns:
    """The columns of a file; numbers without names have those of the other files."""
    one = known[path]
    others = {tuple(each.names) for each in known.values() if each.names}
    if one.label is None or not one.numbered or one.names is not None:
        if one.label is not None and not one.numbered and not others and (odd := [p for p, c in known.items() if c.numbered]):
            raise ConfigError(
                f"data.source parquet:{where}: the label column {one.label!r} holds texts in {path.name}, and numbers without names in "
                f"{odd[0].name}: make them one kind"
            )
        return one
    if len(others) > 1:
        raise ConfigError(
            f"data.source parquet:{where}: {path.name} holds numbers as {one.label!r} without their class names, and other files have "
            "different ones: write the names into the file, or give the files one by one"
        )
    names = next(iter(others), None)
    return replace(one, names=list(names), numbered=True, stamp=stamp_of(names)) if names else one


def check_names(where: str, entries: tuple[Entry, ...]) -> None:
    """Files are known by name, so that a data set may be moved as a whole."""
    names = [entry.name for entry in entries]
    if double := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"data.source {where}: several files are called {sorted(double)[0]!r}: give each another name")

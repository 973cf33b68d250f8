"""Tables of files: what rows of CSV and JSONL say of the images that they name."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.reading import file_bytes, said
from tokenloom.tasks.modalities.image.labels import Place, Wanted, label_of, named_splits, split_of_value, text_of
from tokenloom.tasks.sources.far import Far
from tokenloom.tasks.sources.far import Place as File

TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Table:
    """Rows of ``metadata.csv`` and ``metadata.jsonl`` by the file that they are about."""

    rows: Mapping[File, Mapping[str, Any]] = field(default_factory=dict)
    labelled: bool = False
    captioned: bool = False
    splits: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()

    @classmethod
    def read(cls, paths: list[File], wanted: Wanted) -> Table:
        """All tables of a source.

        Raises:
            ConfigError: one that is no table of files.
        """
        rows: dict[File, Mapping[str, Any]] = {}
        labelled, captioned, parts, splits = False, False, list[str](), dict[str, str]()
        for path in paths:
            listed = table_rows(path)
            names = list(dict.fromkeys(name for row in listed for name in row))
            label, caption, split = (choose(names, str(path)) for choose in (wanted.label, wanted.caption, wanted.split))
            splits |= named_splits((row.get(split) for row in listed), split, str(path)) if split else {}
            labelled, captioned = labelled or label is not None, captioned or caption is not None
            parts += [
                f"{path.name}: "
                + ", ".join(
                    [f"{what} from {column}" for what, column in (("labels", label), ("captions", caption), ("splits", split)) if column]
                )
            ]
            for row in listed:
                chosen = {"label": row.get(label) if label else None, "caption": (row.get(caption) or None) if caption else None}
                chosen["split"] = (row.get(split) or None) if split else None
                rows[beside_of(path, str(row["file_name"]))] = {k: v for k, v in chosen.items() if v is not None}
        return cls(rows, labelled, captioned, splits, tuple(parts))

    def place(self, path: File, place: Place, key: str, wanted: Wanted) -> tuple[Place, Mapping[str, Any]]:
        """An image's place with the label and the split that its row gives it, and that row."""
        row = self.rows.get(path, {})
        if self.splits and row.get("split"):
            place = replace(place, split=split_of_value(self.splits, row["split"], key, wanted))
        if not self.labelled:
            return place, row
        value = row.get("label")
        if value is not None and not isinstance(value, (int, str)):
            return Place(None, place.split, f"its label is neither a whole number nor a text: {value!r}"), row
        problem = None if value is not None else "no label in the table of the images"
        return Place(label_of(value), place.split, problem), row

    def how(self, there: Collection[File]) -> str:
        """Where captions and labels come from, and rows of files that are not there."""
        missing = [path for path in self.rows if path not in there]
        told = [f"{len(missing)} rows of files that are not there (first: {missing[0].name})"] if missing else []
        return "; ".join([*self.said, *told])


def beside_of(path: File, name: str) -> File:
    """The file of a name that is relative to the folder of another one."""
    return path.parent / name if isinstance(path, Far) else Path(os.path.normpath(path.parent / name))


def table_rows(path: File) -> list[dict[str, Any]]:
    """Rows of a table of files, each with its ``file_name``.

    Raises:
        ConfigError: not such a table, naming the line.
    """
    try:
        rows = plain_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: not a table of images and captions: {said(error)}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ConfigError(f"{path}: row {number} has no file_name, the image that it is about")
    return rows


def plain_rows(path: File) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or JSONL file as it stands."""
    text = text_of(file_bytes(path), str(path)) or ""
    if path.suffix.lower() in (".csv", ".tsv"):
        head = text.partition("\n")[0]  # the first line says what parts its names
        parted = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
        return [{k: v for k, v in row.items() if k is not None} for row in csv.DictReader(io.StringIO(text), delimiter=parted)]
    if text.startswith("["):  # one list instead of a line a row
        return list(json.loads(text))
    return [json.loads(line) for line in text.splitlines() if line.strip()]

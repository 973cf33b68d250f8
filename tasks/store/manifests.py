"""Records of many shards: their list is a Parquet file beside the record, which names it by its hash; it is read when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.tasks.runtime.errors import ArtifactError

NAME = "shards.parquet"
LEAST = 256  # shards from which on a record refers to a manifest
_OF_A_FILE = ("path", "size", "sha256", "rows")

Rows = Sequence[dict[str, Any]]


class Listed(Sequence[dict[str, Any]]):
    """A list that is read when it is looked into first; its length is known before."""

    def __init__(self, length: int, read: Callable[[], list[dict[str, Any]]]) -> None:
        self._length, self._read = length, read
        self._rows: list[dict[str, Any]] | None = None

    def _all(self) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = self._read()
        return self._rows

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._all()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Listed({self._length})"


def split(files: Rows, notes: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bytes] | None:
    """The files that are no shards, and the manifest of the shards; None where the record holds them itself."""
    shards = notes.get("shards")
    if not isinstance(shards, Sequence) or len(shards) < LEAST:
        return None
    known = {shard["path"]: _file_of(shard) for shard in shards if all(name in shard for name in _OF_A_FILE)}
    mine = [file for file in files if file == known.get(file["path"])]
    if len(known) != len(shards) or len(mine) != len(shards):
        return None  # they are listed in another way
    sink = pa.BufferOutputStream()
    names = list(dict.fromkeys(name for shard in shards for name in shard))
    table = pa.table({name: [shard.get(name) for shard in shards] for name in names})
    pq.write_table(table, sink, compression="zstd", write_statistics=False)
    return [file for file in files if file["path"] not in known], sink.getvalue().to_pybytes()


def joined(files: Rows, length: int, read: Callable[[], bytes], where: str) -> tuple[Rows, Rows]:
    """The files and the shards of a record that refers to a manifest.

    Args:
        files: those that are no shards.
        read: the verified bytes of the manifest.
    """
    shards = Listed(length, lambda: _parsed(read(), where))
    plain = list(files)
    return Listed(length + len(plain), lambda: sorted([*plain, *map(_file_of, shards)], key=lambda file: str(file["path"]))), shards


def _file_of(shard: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shard[name] for name in _OF_A_FILE}


def _parsed(data: bytes, where: str) -> list[dict[str, Any]]:
    try:
        columns = pq.ParquetFile(pa.BufferReader(data)).read().to_pydict()
    except pa.ArrowException as error:
        raise ArtifactError(f"{where}: not a list of shards: {error}") from error
    names = list(columns)
    return [{name: value for name, value in zip(names, row) if value is not None} for row in zip(*columns.values())]

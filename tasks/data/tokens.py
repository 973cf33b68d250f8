"""The Parquet form of tokens: one row an image and view, fixed-size lists of the narrowest type.

L tokens, Q codebooks, C channels of latents.  Columns: key, view (uint8), label (int32), caption, ids
(fixed_size_list<uint8|16|32>[L*Q], or float16[L*C] latents), and of ragged rows ``length`` (uint32): how many of the L tokens are
valid, the rest being zero.  Layout and lineage stand in the file's metadata.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.tasks.runtime.errors import ArtifactError

_METADATA = b"tokenloom"
FORMAT = 1


@dataclass(frozen=True)
class TokenRows:
    """The content of one token shard; ``data`` is (N, L), (N, L, Q) ids or (N, L, C) latents."""

    keys: list[str]
    view_N: np.ndarray
    label_N: np.ndarray
    captions: list[str | None]
    data: np.ndarray
    layout: TokenLayout
    lineage: dict[str, Any]
    length_N: np.ndarray | None = None  # valid tokens of ragged rows; None when all are full


def number_type(layout: TokenLayout) -> np.dtype[Any]:
    """The narrowest type that holds the layout's tokens: uint8, uint16, uint32, or float16 for latents."""
    if not layout.discrete:
        return np.dtype(np.float16)
    return np.dtype(np.uint8 if layout.vocabulary <= 1 << 8 else np.uint16 if layout.vocabulary <= 1 << 16 else np.uint32)


def row_shape(layout: TokenLayout) -> tuple[int, ...]:
    """Shape of one row: (L,), (L, Q) or (L, C)."""
    if not layout.discrete:
        return (layout.length, layout.channels)
    return (layout.length,) if layout.codebooks == 1 else (layout.length, layout.codebooks)


def check_tokens(data: np.ndarray, layout: TokenLayout, where: str) -> np.ndarray:
    """Tokens in their narrowest type.

    Raises:
        ArtifactError: wrong shape, an id outside of the vocabulary, or a latent that is not finite.
    """
    if data.shape[1:] != row_shape(layout):
        raise ArtifactError(f"{where}: rows of shape {data.shape[1:]}, the layout says {row_shape(layout)}")
    if layout.discrete:
        if data.dtype.kind not in "iu":
            raise ArtifactError(f"{where}: ids of type {data.dtype}, expected integers")
        if data.size and (int(data.min()) < 0 or int(data.max()) >= layout.vocabulary):
            raise ArtifactError(f"{where}: ids from {data.min()} to {data.max()}, the vocabulary has {layout.vocabulary}")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(data.astype(number_type(layout)))
    if not layout.discrete and not np.isfinite(numbers).all():
        raise ArtifactError(f"{where}: latents that are not finite in float16")
    return numbers


def write_tokens(
    path: Path | None,
    *,
    keys: Sequence[str],
    view_N: np.ndarray,
    label_N: np.ndarray,
    captions: Sequence[str | None],
    data: np.ndarray,
    layout: TokenLayout,
    lineage: dict[str, Any],
    length_N: np.ndarray | None = None,
    columns: Mapping[str, Sequence[bytes | None]] = MappingProxyType({}),
) -> bytes:
    """One token shard as Parquet bytes, also written to ``path`` if given; same rows, same bytes.

    Raises:
        ArtifactError: tokens that do not fit the layout.
    """
    if length_N is not None:
        data = padded(data, length_N, layout, str(path or "tokens"))
    numbers = check_tokens(data, layout, str(path or "tokens"))
    flat = pa.array(numbers.reshape(-1))
    width = int(np.prod(row_shape(layout)))
    stored = {
        "key": pa.array(list(keys), pa.string()),
        "view": pa.array(np.asarray(view_N, np.uint8)),
        "label": pa.array(np.asarray(label_N, np.int32)),
        "caption": pa.array(list(captions), pa.string()),
        "ids": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    if length_N is not None:
        stored["length"] = pa.array(np.asarray(length_N, np.uint32))
    description = {"format": FORMAT, "layout": layout.to_dict(), "lineage": lineage}
    stored |= {name: pa.array(list(values), pa.binary()) for name, values in columns.items()}
    table = pa.table(stored).replace_schema_metadata({_METADATA: json.dumps(description, sort_keys=True).encode()})
    sink = io.BytesIO()
    # Parquet keeps small integers as 32 bits: byte by byte the empty ones vanish, mixed with the others they cost a third more.
    encoding = {"ids.list.element": "BYTE_STREAM_SPLIT"} if layout.discrete else None
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_statistics=False, column_encoding=encoding)
    if path is not None:
        path.write_bytes(sink.getvalue())
    return sink.getvalue()


def read_tokens(source: Path | bytes, where: str = "", layout: TokenLayout | None = None) -> TokenRows:
    """A token shard, checked against its own layout and, if given, the one that is wanted.

    Args:
        where: name of the source in error messages.

    Raises:
        ArtifactError: damaged file, foreign file, or ids outside of the vocabulary.
        LayoutError: made by another tokenizer or for another layout than ``layout``.
    """
    where = where or (str(source) if isinstance(source, Path) else "token shard")
    try:
        table = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source).read()
        description = json.loads((table.schema.metadata or {})[_METADATA])
        found = TokenLayout.from_dict(description["layout"])
        column = table["ids"].combine_chunks()
        data = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *row_shape(found))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, FileNotFoundError):
            raise ArtifactError(f"{where}: missing") from error
        raise ArtifactError(f"{where}: not a whole token shard ({error}); delete it and run again to make it anew") from error
    if layout is not None:
        layout.check(found)
    return TokenRows(
        table["key"].to_pylist(),
        table["view"].to_numpy(),
        table["label"].to_numpy(),
        table["caption"].to_pylist(),
        check_tokens(data, found, where),
        found,
        description["lineage"],
        _lengths(table["length"].to_numpy(), found, where) if "length" in table.column_names else None,
    )


def padded(data: np.ndarray, length_N: np.ndarray, layout: TokenLayout, where: str) -> np.ndarray:
    """Ragged rows (N, T, …) as (N, L, …), zero after each row's length.

    Raises:
        ArtifactError: more tokens than the layout has positions, or a length outside of its row.
    """
    if data.shape[1] > layout.length or len(length_N) != len(data) or (len(data) and int(np.max(length_N)) > data.shape[1]):
        raise ArtifactError(f"{where}: ragged rows of {data.shape[1]} columns do not fit lengths and layout of {layout.length} positions")
    result = np.zeros((len(data), layout.length, *data.shape[2:]), data.dtype)
    result[:, : data.shape[1]] = data
    result[np.arange(layout.length) >= _lengths(length_N, layout, where)[:, None]] = 0
    return result


def _lengths(length_N: np.ndarray, layout: TokenLayout, where: str) -> np.ndarray:
    length_N = np.asarray(length_N).astype(np.int64)
    if len(length_N) and not 1 <= int(length_N.min()) <= int(length_N.max()) <= layout.length:
        raise ArtifactError(f"{where}: lengths from {length_N.min()} to {length_N.max()}, rows have 1 to {layout.length} tokens")
    return length_N

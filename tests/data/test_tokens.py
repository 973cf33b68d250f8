"""Token shards: narrowest types, what the file itself says, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels, LayoutError, TokenLayout
from tokenloom.tasks.data.loader import Loader, Rows, Shard
from tokenloom.tasks.data.tokens import read_tokens, write_tokens
from tokenloom.tasks.modalities.image.views import parse_views
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Store, sha256_of


def layout(**changes: Any) -> TokenLayout:
    return TokenLayout(**{"grids": ((1, 1), (2, 2)), "vocabulary": 300, "tokenizer": "abc", **changes})


def shard(of: TokenLayout, rows: int = 4, **changes: Any) -> bytes:
    generator = np.random.default_rng(0)
    shape = (rows, of.length) + ((of.channels,) if of.channels else (of.codebooks,) if of.codebooks > 1 else ())
    data = generator.normal(size=shape) if of.channels else generator.integers(0, of.vocabulary, shape)
    given: dict[str, Any] = {
        "keys": [f"k{i}" for i in range(rows)],
        "view_N": np.zeros(rows, np.uint8),
        "label_N": np.arange(rows),
        "captions": [None] * rows,
        "data": data,
        "layout": of,
        "lineage": {"tokenizer": "t-abc"},
    }
    return write_tokens(None, **{**given, **changes})


@pytest.mark.parametrize(
    ("of", "number"),
    [
        (layout(vocabulary=256), pa.uint8()),
        (layout(vocabulary=257), pa.uint16()),
        (layout(vocabulary=1 << 16), pa.uint16()),
        (layout(vocabulary=(1 << 16) + 1), pa.uint32()),
        (layout(vocabulary=16, codebooks=3), pa.uint8()),
        (layout(vocabulary=0, channels=2), pa.float16()),
    ],
)
def test_lists_have_a_fixed_size_and_the_narrowest_type(of: TokenLayout, number: pa.DataType) -> None:
    data = shard(of)
    schema = pq.read_schema(pa.BufferReader(data))
    assert schema.field("ids").type == pa.list_(number, of.length * max(of.codebooks, of.channels))
    assert [schema.field(n).type for n in ("key", "view", "label", "caption")] == [pa.string(), pa.uint8(), pa.int32(), pa.string()]
    rows = read_tokens(data)
    assert rows.layout == of
    assert rows.lineage == {"tokenizer": "t-abc"}
    assert rows.data.shape[:2] == (4, 5)
    assert rows.label_N.tolist() == [0, 1, 2, 3]
    assert shard(of) == data, "same rows, same bytes"


def test_ids_survive(tmp_path: Path) -> None:
    ids = np.array([[0, 299, 7, 255, 256]])
    path = tmp_path / "x.parquet"
    write_tokens(path, keys=["a"], view_N=np.array([1]), label_N=np.array([3]), captions=["hi"], data=ids, layout=layout(), lineage={})
    rows = read_tokens(path)
    assert rows.data.tolist() == ids.tolist()
    assert (rows.keys, rows.view_N.tolist(), rows.captions) == (["a"], [1], ["hi"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.full((4, 5), 300), "vocabulary has 300"),
        (np.full((4, 5), -1), "vocabulary has 300"),
        (np.zeros((4, 6), int), "shape"),
        (np.zeros((4, 5, 2), int), "shape"),
        (np.zeros((4, 5)), "integers"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(data: np.ndarray, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        shard(layout(), data=data)


def test_latents_must_be_finite_in_half_precision() -> None:
    with pytest.raises(ArtifactError, match="finite"):
        shard(layout(vocabulary=0, channels=1), data=np.full((4, 5, 1), 1e6))


def test_another_tokenizers_tokens_are_refused() -> None:
    data = shard(layout())
    read_tokens(data, layout=layout())
    read_tokens(data, layout=layout(tokenizer=""))
    for other in (layout(tokenizer="xyz"), layout(vocabulary=299), layout(grids=((1, 1), (1, 4)))):
        with pytest.raises(LayoutError, match="do not fit"):
            read_tokens(data, layout=other)


def test_ids_outside_of_the_vocabulary_are_found_on_reading() -> None:
    table = pq.read_table(pa.BufferReader(shard(layout())))
    bad = pa.FixedSizeListArray.from_arrays(pa.array(np.full(20, 999, np.uint16)), 5)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(table.schema.get_field_index("ids"), "ids", bad), sink)
    with pytest.raises(ArtifactError, match=r"bad\.parquet: ids from 999 to 999, the vocabulary has 300"):
        read_tokens(sink.getvalue().to_pybytes(), "bad.parquet")


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    data, path = shard(layout()), tmp_path / "shard.parquet"
    path.write_bytes(data[:-30])
    with pytest.raises(ArtifactError, match=r"shard\.parquet: not a whole token shard"):
        read_tokens(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ArtifactError, match=r"shard\.parquet: not a whole token shard"):
        read_tokens(path)
    with pytest.raises(ArtifactError, match="missing"):
        read_tokens(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "of", [layout(), layout(codebooks=2), layout(vocabulary=70000), layout(vocabulary=9), layout(vocabulary=0, channels=3)]
)
def test_the_loader_gives_tokens_with_their_layout(store: Store, tmp_path: Path, of: TokenLayout) -> None:
    data = shard(of, rows=6)
    store.storage.write("t.parquet", data)
    rows = Rows("tokens", store.uri, (Shard("t.parquet", "train", 6, sha256_of(data), len(data)),), 6, of.to_dict())
    batch = Loader(Rows.from_dict(rows.to_dict()), tmp_path).get(np.array([5, 0]))
    assert batch.tokens is not None
    assert batch.tokens.layout == of
    expected = read_tokens(data).data[[5, 0]]
    if of.discrete:
        assert batch.tokens.data.dtype == of.id_dtype
        assert batch.tokens.ids.tolist() == expected.tolist()
    else:
        assert batch.tokens.data.dtype == torch.float16
        assert batch.tokens.data.numpy().tolist() == expected.tolist()
    assert isinstance(batch.conditions["class"], Labels)
    assert batch.conditions["class"].label_B.tolist() == [5, 0]


def test_the_loader_refuses_tokens_of_another_layout(store: Store, tmp_path: Path) -> None:
    data = shard(layout())
    store.storage.write("t.parquet", data)
    listed = (Shard("t.parquet", "train", 4, sha256_of(data), len(data)),)
    with pytest.raises(LayoutError, match="tokenizer"):
        Loader(Rows("tokens", store.uri, listed, 4, layout(tokenizer="other").to_dict()), tmp_path)


@pytest.mark.parametrize("views", [(), ("plain", "plain"), ("rotate",)])
def test_unknown_views_are_refused(views: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="views"):
        parse_views(views)

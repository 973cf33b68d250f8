"""Ragged token rows: stored, loaded and trained; padding never counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_runs import here_fixture, ran, scheduled  # noqa: F401

from tokenloom.configs.load import load_run
from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Labels, LayoutError, TokenLayout, Tokens
from tokenloom.tasks.data.loader import Loader, Rows, Shard
from tokenloom.tasks.data.tokens import read_tokens, write_tokens
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Store, sha256_of

LAYOUT = TokenLayout(grids=((1, 8),), vocabulary=20, axis="sequence")
LENGTHS = np.array([8, 3, 5, 1])


def shard(data: np.ndarray, lengths: np.ndarray) -> bytes:
    rows = len(data)
    names: Any = [str(i) for i in range(rows)]
    flat = np.zeros(rows, np.int64)
    return write_tokens(
        None, keys=names, view_N=flat, label_N=flat, captions=[None] * rows, data=data, layout=LAYOUT, lineage={}, length_N=lengths
    )


def ids(columns: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 20, (4, columns))


def test_lengths_are_stored_and_padding_is_zero(store: Store, tmp_path: Path) -> None:
    data = shard(ids(), LENGTHS)
    found = read_tokens(data)
    assert found.length_N is not None
    assert found.length_N.tolist() == LENGTHS.tolist()
    for row, length in enumerate(LENGTHS):
        assert (found.data[row, length:] == 0).all()
        assert (found.data[row, :length] == ids()[row, :length]).all()
    store.storage.write("t.parquet", data)
    rows = Rows("tokens", store.uri, (Shard("t.parquet", "train", 4, sha256_of(data), len(data)),), 1, LAYOUT.to_dict())
    tokens = Loader(rows, tmp_path).get(np.array([2, 0])).tokens
    assert tokens is not None
    assert tokens.lengths is not None
    assert tokens.lengths.tolist() == [5, 8]
    assert tokens.valid_BL is not None
    assert tokens.valid_BL.sum(1).tolist() == [5, 8]


def test_shorter_rows_are_padded_to_the_layout() -> None:
    assert read_tokens(shard(ids(6), np.array([6, 3, 5, 1]))).data.shape == (4, 8)


@pytest.mark.parametrize("lengths", [[9, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1]])
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ArtifactError, match="length"):
        shard(ids(), np.array(lengths))


def model(name: str = "raster", **args: Any) -> Any:
    torch.manual_seed(0)
    made_by = ModelSpec("tokenizer", "jpeg", {"length": 64}, {}, {"signal": signals.image(8, 1).to_dict()})
    given = {"layout": LAYOUT.to_dict(), "classes": 1, "tokenizer": made_by.to_dict()}
    tiny = {**registry.get(name).tiny, **args}
    return ModelSpec("generator", name, tiny, {}, given).build()


def batch(data: np.ndarray, lengths: np.ndarray | None) -> Batch:
    kept = None if lengths is None else torch.from_numpy(lengths)
    return Batch(tokens=Tokens(torch.from_numpy(data), LAYOUT, kept), conditions=Labels(torch.zeros(len(data), dtype=torch.int64)))


def loss(of: Any, given: Batch) -> float:
    return float(of.losses(given, "main", Draws.whole(0, 0, given.rows))["loss"].detach())


def test_padding_counts_nothing_and_a_row_counts_as_one() -> None:
    raster = model(dropout=0.0, label_dropout=0.0).eval()
    other = ids()
    other[np.arange(8) >= LENGTHS[:, None]] = 7
    assert loss(raster, batch(ids(), LENGTHS)) == loss(raster, batch(other, LENGTHS))
    torch.testing.assert_close(raster.log_prob(batch(ids(), LENGTHS)), raster.log_prob(batch(other, LENGTHS)), rtol=0, atol=0)
    rows = [loss(raster, batch(ids()[i : i + 1], LENGTHS[i : i + 1])) for i in range(4)]
    assert loss(raster, batch(ids(), LENGTHS)) == pytest.approx(np.mean(rows), rel=1e-5)
    assert loss(raster, batch(ids(), np.full(4, 8))) == pytest.approx(loss(raster, batch(ids(), None)), rel=1e-6)
    per_token = -raster.log_prob(batch(ids(), LENGTHS)).detach().numpy() / LENGTHS
    assert per_token.mean() == pytest.approx(np.mean(rows), rel=1e-5)


def test_methods_that_would_predict_from_padding_refuse_ragged_rows() -> None:
    with pytest.raises(LayoutError, match="ragged rows"):
        loss(model("maskgit").train(), batch(ids(), LENGTHS))


def test_jpeg_without_padding_is_as_long_as_its_bytes() -> None:
    args = dict(registry.get("jpeg").tiny)
    given = {"signal": signals.image(8, 1).to_dict()}
    filled, ragged = (ModelSpec("tokenizer", "jpeg", {**args, "padding": p}, {}, given).build() for p in ("end", "none"))
    image = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    image[0] = 0
    a: Any = filled.encode(image)  # type: ignore[operator]
    b: Any = ragged.encode(image)  # type: ignore[operator]
    assert a.lengths is None
    assert len(set(b.lengths.tolist())) > 1
    for row, length in enumerate(b.lengths.tolist()):
        assert int(b.ids[row, length - 1]) == 256
        assert (b.ids[row, : length - 1] < 256).all()
    assert torch.equal(ragged.decode(b), filled.decode(a))  # type: ignore[operator]
    assert replace(b, lengths=None).ids.tolist() == a.ids.tolist()


@pytest.mark.slow
def test_bytes_of_any_length_go_from_images_to_a_registered_model(here: Store, tmp_path: Path) -> None:
    rows, said = scheduled(load_run("smoke_ragged", ["data.limit=60", "evaluate.samples=10", "evaluate.neighbours=2"]), here)
    assert ran(rows)[-2:] == ["evaluate", "register"]
    assert "models:/smoke-ragged/1 is champion" in said
    tokens = here.records("tokens")[0]
    lengths = np.concatenate([read_tokens(here.storage.read(shard["path"])).length_N for shard in tokens.notes["shards"]])  # type: ignore[misc]
    assert len(lengths) == 60
    assert 1 < lengths.min() < lengths.max() <= 96
    judged = here.records("evaluation")[0].metrics
    assert judged["nll_bits_per_image"] > 0
    assert judged["tokens_per_image"] == pytest.approx(lengths.mean(), rel=0.5), "padding is not counted"
    sample_model("smoke-ragged", here, None, total=3, out=tmp_path / "drawn.npz")
    with np.load(tmp_path / "drawn.npz") as arrays:
        assert arrays["images"].shape == (3, 16, 16, 1)

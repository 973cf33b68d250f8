"""Views of images as tokens, by name, and how fast they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from extraction import CLUSTER, InProcess, dataset, images_fixture, tokenizer  # noqa: F401

from tokenloom.configs.load import load_run
from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data import extract as module
from tokenloom.tasks.data.extract import extract, plan_extract, throughput
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.tokens import read_tokens, write_tokens
from tokenloom.tasks.modalities.image.views import TEN_CROP, parse_views, view_of
from tokenloom.tasks.store.artifacts import Store


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    stand_in = InProcess()
    monkeypatch.setattr(module, "_encode", stand_in)
    return stand_in


def test_ten_crops_are_five_places_and_their_mirrors():
    size = 20
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    large = F.interpolate(image, size=(22, 22), mode="bilinear", align_corners=False)
    places = {"top_left": (0, 0), "top_right": (0, 2), "bottom_left": (2, 0), "bottom_right": (2, 2), "centre": (1, 1)}
    for name, (top, left) in places.items():
        crop = large[..., top : top + size, left : left + size]
        assert torch.equal(view_of(image, name), crop)
        assert torch.equal(view_of(image, f"{name}_flip"), crop.flip(-1))
    assert len(TEN_CROP) == 10
    assert torch.equal(view_of(image, "plain"), image)
    assert torch.equal(view_of(image, "flip"), image.flip(-1))


def test_small_images_are_enlarged_by_a_pixel_at_least():
    image = torch.rand(1, 1, 4, 4)
    assert not torch.equal(view_of(image, "top_left"), view_of(image, "bottom_right"))


@pytest.mark.parametrize("views", [(), ("plain", "plain"), ("upside_down",), ("ten_crop", "centre")])
def test_views_that_make_no_sense(views):
    with pytest.raises(ConfigError, match="give each of plain, flip, ten_crop at most once"):
        parse_views(views)


def test_names_of_views_stay_what_they_are():
    assert parse_views(("ten_crop",)) == TEN_CROP == parse_views(TEN_CROP)
    assert parse_views(("plain", "ten_crop"))[:2] == ("plain", "top_left")


def test_a_run_says_which_views_and_their_names_are_recorded(store: Store, images: Path, actors: InProcess) -> None:
    config = load_run("smoke_vq", ["extract.views=[ten_crop]"])
    data = dataset(store, images).artifact
    codec = tokenizer(store, data)
    made = extract(plan_extract("pets", data, codec, store, tuple(config.extract.views)), store, CLUSTER)
    record, pictures = store.record(made.artifact), store.record(data).notes
    assert record.config["views"] == list(TEN_CROP)
    shard = next(s for s in record.notes["shards"] if s["split"] == "train")
    rows = read_tokens(store.storage.local_path(shard["path"]))
    count = len(rows.keys) // 10
    assert rows.view_N.tolist() == [view for view in range(10) for _ in range(count)]
    assert rows.lineage["views"] == list(TEN_CROP)
    pixels = Rows("signals", store.uri, tuple(s for s in Rows.of(pictures, store.uri, "train").shards if s.sha256 == shard["images"]), 2)
    image = Loader(pixels, store.cache).get(np.arange(count)).signal
    model: Any = load_model(store.fetch(codec))[0]
    with torch.inference_mode():
        for view, name in enumerate(TEN_CROP):
            np.testing.assert_array_equal(rows.data[rows.view_N == view], model.encode(view_of(image, name)).data.numpy())
    assert made.metrics["train"] == 10 * sum(s["rows"] for s in pictures["shards"] if s["split"] == "train")
    with pytest.raises(ConfigError, match="upside"):
        load_run("smoke_vq", ["extract.views=[upside]"])


def test_the_record_says_how_fast_the_tokens_were_made(store: Store, images: Path, actors: InProcess) -> None:
    data = dataset(store, images).artifact
    metrics = extract(plan_extract("pets", data, tokenizer(store, data), store), store, CLUSTER).metrics
    assert metrics["images_per_second"] > 0
    assert 0 < metrics["encoder_share"] <= 1
    again = plan_extract("again", data, tokenizer(store, data, seed=1), store, ("plain", "flip"))
    assert "timing" not in str(store.record(extract(again, store, CLUSTER).artifact).notes)


def test_throughput_of_overlapping_shards_of_two_workers():
    a = [{"worker": "a", "encoding": 4.0, "began": 0.0, "ended": 5.0, "rows": 40}]
    a += [{"worker": "a", "encoding": 4.0, "began": 1.0, "ended": 10.0, "rows": 40}]
    b = [{"worker": "b", "encoding": 8.0, "began": 100.0, "ended": 110.0, "rows": 120}]
    assert throughput(a + b) == {"images_per_second": 200 / 10, "encoder_share": 16 / 20}
    assert throughput([]) == {}


@pytest.mark.parametrize(("vocabulary", "books", "width"), [(256, 1, 1), (4096, 1, 2), (2, 18, 1), (1 << 18, 1, 4)])
def test_the_ids_of_a_shard_take_little_more_than_their_numbers(vocabulary, books, width, tmp_path):
    from tokenloom.models.core.protocols import TokenLayout

    layout = TokenLayout(grids=((8, 8),), vocabulary=vocabulary, codebooks=books)
    data = np.random.default_rng(0).integers(0, vocabulary, (500, 64, books) if books > 1 else (500, 64))
    path = tmp_path / "tokens.parquet"
    write_tokens(
        path,
        keys=[str(i) for i in range(500)],
        view_N=np.zeros(500),
        label_N=np.zeros(500),
        captions=[None] * 500,
        data=data,
        layout=layout,
        lineage={},
    )
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = {group.column(i).path_in_schema.split(".")[0]: group.column(i).total_compressed_size for i in range(group.num_columns)}
    assert columns["ids"] <= 1.1 * 500 * 64 * books * width

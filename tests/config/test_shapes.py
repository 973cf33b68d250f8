"""``data.size`` is a number or a shape: images that are no squares go through every step, and each kind refuses what it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline_runs import here_fixture, ran, scheduled  # noqa: F401
from pydantic import ValidationError
from toy_runs import run, source_fixture  # noqa: F401

from tokenloom.configs.schema import DataConfig, RunConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.modalities.image.fit import fit
from tokenloom.tasks.modalities.image.views import view_of
from tokenloom.tasks.store.artifacts import Store

SERIES = {"history": 24, "horizon": 12, "season": 1}


def data(size: Any, **options: Any) -> DataConfig:
    return DataConfig(**{"source": "folder:x", "size": size, **options})


def test_a_square_shape_is_its_number() -> None:
    assert identity(data([32, 32])) == identity(data(32))
    assert identity(data(32))["size"] == 32
    assert identity(data([32, 48]))["size"] == [32, 48]
    assert identity(data([32, 48])) != identity(data([48, 32]))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (3, "size=3: give rows and columns"),
        ([8, 3], r"size=\[8, 3\]: give rows and columns"),
        (5000, "4 to 4096"),
        ([8, 8, 8], "a whole number, or two"),
        ("big", "a whole number, or two"),
        ([8, 9.5], "a whole number, or two"),
    ],
)
def test_a_size_that_no_image_has_is_one_clear_problem(size: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        data(size)
    assert caught.value.error_count() == 1


def test_a_series_has_values_and_channels() -> None:
    series = modalities.kind("series")
    given: dict[str, Any] = {"kind": "series", "source": "sunspots", "series": SERIES}
    assert series.spec(data([36, 1], **given)) == series.spec(data(0, **given))
    with pytest.raises(ConfigError, match=r"data\.size=\[36, 2\]: these windows have 36 values .* of 1 channels \(SUNACTIVITY\)"):
        series.spec(data([36, 2], **given))
    with pytest.raises(ValidationError, match=r"size=36: a window of a series has the size \[values, channels\]"):
        data(36, **given)
    assert data([4, 4], **{**given, "series": {"history": 2, "horizon": 2}}).shape == (4, 4)


@pytest.mark.parametrize(("how", "top", "left"), [("pad", 2, 4), ("crop", 0, 0), ("resize", 0, 0)])
def test_every_way_of_fitting_fills_rows_and_columns(how: Any, top: int, left: int) -> None:
    image = np.full((6, 8), 200, np.uint8)
    image[:, :4] = 100
    fitted = fit(image, data([10, 16], fit=how))
    assert fitted.shape == (10, 16, 1)
    assert fitted[top, left, 0] == 100, "the left half"
    assert fitted[9 - top, 15 - left, 0] == 200, "the right half"
    assert (fitted[:2] == 0).all() == (how == "pad")


def test_crops_of_an_oblong_keep_its_shape_and_its_corners() -> None:
    image = torch.arange(10 * 20.0).view(1, 1, 10, 20)
    first, last = view_of(image, "top_left"), view_of(image, "bottom_right")
    assert first.shape == last.shape == image.shape
    assert first[0, 0, 0, 0] == image[0, 0, 0, 0]
    assert last[0, 0, -1, -1] == image[0, 0, -1, -1]


def test_a_dataset_says_its_shape(store: Store, source: Path) -> None:
    record = store.record(ingest("x", run(source, "data.size=[8,12]").data, store).artifact)
    assert record.notes["signal"]["shape"] == [8, 12]
    signal = Loader(Rows.of(record.notes, store.uri, "train"), store.cache).get(np.arange(3)).signal
    assert signal is not None
    assert signal.shape == (3, 1, 8, 12)
    assert (signal[..., :2] == -1).all(), "padded at the left"


@pytest.mark.slow
def test_oblong_images_go_through_every_step(source: Path, here: Store, tmp_path: Path) -> None:
    tiny = {"channels": 8, "multipliers": [1, 2], "patch": 1, "dim": 4, "codes": 16}
    sets = ("data.size=[8,12]", "evaluate={samples: 10, neighbours: 1, components: 2, metrics: [fd, reconstruction, recognition, text]}")
    document = run(source, *sets).model_dump(mode="json", by_alias=True)
    document["tokenizer"] |= {"recipe": "vq", "args": tiny}
    document["generator"] |= {"recipe": "raster"}
    rows, _ = scheduled(RunConfig.model_validate(document), here)
    assert "evaluate" in ran(rows)
    record = here.records("evaluation")[0]
    assert record.notes["protocol"]["image"]["size"] == [8, 12]
    assert "square" in record.notes["skipped"][0]
    sample_model("toy", here, None, total=2, out=tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        assert file["images"].shape == (2, 8, 12, 1)

"""The data order without state, the node cache, and what happens to damaged shards."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Labels
from tokenloom.tasks.data.arrays import map_array
from tokenloom.tasks.data.loader import Loader, Rows, Shard, indices, share
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Store, sha256_of

small = settings(max_examples=60, deadline=None)


@small
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 40), rows=st.integers(1, 60), epochs=st.integers(1, 3))
def test_every_epoch_is_a_permutation_of_all_rows(seed: int, batch: int, rows: int, epochs: int) -> None:
    steps = -(-rows * epochs // batch)
    seen = np.concatenate([indices(seed, step, batch, rows) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@small
@given(seed=st.integers(0, 99), step=st.integers(0, 500), batch=st.integers(1, 40), rows=st.integers(1, 60), world=st.integers(1, 9))
def test_any_number_of_workers_sees_the_same_global_batch(seed: int, step: int, batch: int, rows: int, world: int) -> None:
    whole = indices(seed, step, batch, rows)
    parts = [share(batch, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate([whole[a:b] for a, b in parts]), whole)
    sizes = [b - a for a, b in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == batch


def test_the_order_is_a_function_of_seed_and_step() -> None:
    assert indices(0, 3, 8, 100).tolist() == indices(0, 3, 8, 100).tolist()
    assert indices(0, 3, 8, 100).tolist() != indices(1, 3, 8, 100).tolist()
    first = [indices(0, step, 10, 100).tolist() for step in range(10)]
    second = [indices(0, step, 10, 100).tolist() for step in range(10, 20)]
    assert first != second, "epochs differ"


def test_the_order_does_not_change_between_releases() -> None:
    assert indices(0, 0, 8, 10).tolist() == [1, 7, 5, 0, 3, 9, 4, 6]


@pytest.mark.parametrize("arguments", [(0, 0, 8, 0), (0, 0, 0, 8), (0, -1, 8, 8)])
def test_impossible_orders_raise(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        indices(*arguments)
    with pytest.raises(ConfigError):
        share(8, 2, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "ramp", "columns", "flat"])
def test_png_is_what_other_programs_read(channels: int, kind: str) -> None:
    from PIL import Image

    image = {
        "noise": np.random.default_rng(0).integers(0, 256, (7, 9, channels), dtype=np.uint8),
        "ramp": np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[:, None, None], 11, 1).repeat(channels, 2),
        "columns": np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 11, 0).repeat(channels, 2),
        "flat": np.full((5, 5, channels), 200, np.uint8),
    }[kind]
    data = png.encode(image)
    assert np.array_equal(png.decode(data), image)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == ("L" if channels == 1 else "RGB")
        assert np.array_equal(np.asarray(opened).reshape(image.shape), image)


def test_damaged_png_raises() -> None:
    data = png.encode(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
    for broken in (data[:-20], data[:50] + b"\xff" + data[51:], b"GIF89a", b""):
        with pytest.raises(ValueError, match="PNG"):
            png.decode(broken)


def test_rows_are_plain_data_that_travel(image_rows: Callable[..., Rows]) -> None:
    rows = image_rows(5)
    assert pickle.loads(pickle.dumps(rows)) == rows
    assert Rows.from_dict(rows.to_dict()) == rows
    notes = {"shards": [{**rows.to_dict()["shards"][0], "more": 1}], "classes": ["a", "b", "c", "d"]}
    assert Rows.of(notes, rows.store, "train") == rows
    assert len(Rows.of(notes, rows.store, "test")) == 0


def test_images_come_in_the_asked_order_over_shards(image_rows: Callable[..., Rows], tmp_path: Path) -> None:
    first, second = image_rows(5, seed=1), image_rows(7, seed=2)
    rows = dataclasses.replace(first, shards=first.shards + second.shards)
    loader = Loader(rows, tmp_path / "cache")
    assert len(loader) == len(rows) == 12
    pixels, label_B = loader.items(np.arange(12))
    asked = np.array([11, 0, 5, 4, 0])
    batch = loader.get(asked)
    assert batch.signal is not None
    assert batch.signal.dtype == torch.float32
    assert batch.signal.shape == (5, 1, 4, 4)
    expected = torch.from_numpy(pixels[asked]).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(batch.signal, expected, rtol=0, atol=1e-6)
    assert isinstance(batch.conditions["class"], Labels)
    assert batch.conditions["class"].label_B.tolist() == label_B[asked].tolist()
    with pytest.raises(IndexError):
        loader.get(np.array([12]))


def test_black_and_white_are_minus_one_and_one(store: Store, tmp_path: Path) -> None:
    shard = write_shard(store, [np.zeros((2, 2, 1), np.uint8), np.full((2, 2, 1), 255, np.uint8)], [0, 1])
    image = Loader(Rows("signals", store.uri, (shard,), 2), tmp_path).get(np.array([0, 1])).signal
    assert image is not None
    assert image[0].unique().tolist() == [-1.0]
    assert image[1].unique().tolist() == [1.0]


def write_shard(store: Store, images: list[np.ndarray], labels: list[int], **changes: object) -> Shard:
    table = pa.table({"image": pa.array([png.encode(i) for i in images]), "label": pa.array(labels, pa.int32())})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    data = sink.getvalue()
    store.storage.write("shards/x.parquet", data)
    shard = Shard("shards/x.parquet", "train", len(images), sha256_of(data), len(data))
    return dataclasses.replace(shard, **changes)  # type: ignore[arg-type]


def test_the_cache_is_filled_once_and_made_again_when_it_is_damaged(image_rows: Callable[..., Rows], store: Store, tmp_path: Path) -> None:
    rows = image_rows(6)
    before = Loader(rows, tmp_path).items(np.arange(6))[0]
    raw = store.storage.read(rows.shards[0].path)
    store.storage.delete(rows.shards[0].path)
    assert np.array_equal(Loader(rows, tmp_path).items(np.arange(6))[0], before), "read from the cache"
    (cached,) = tmp_path.glob("rows/**/data.npy")
    cached.write_bytes(cached.read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="missing"):
        Loader(rows, tmp_path)
    store.storage.write(rows.shards[0].path, raw)
    assert np.array_equal(Loader(rows, tmp_path).items(np.arange(6))[0], before)


def test_any_number_of_shards_is_one_map(image_rows: Callable[..., Rows], tmp_path: Path) -> None:
    first = image_rows(6)
    shards = first.shards + tuple(image_rows(6, seed=seed).shards[0] for seed in range(1, 9))
    open_files, maps = [], []
    kept = []
    for rows in (first, dataclasses.replace(first, shards=shards)):
        kept.append(Loader(rows, tmp_path))
        kept[-1].get(np.arange(len(rows)))
        open_files.append(len(os.listdir("/proc/self/fd")))
        maps.append(Path("/proc/self/maps").read_text().count(f"{tmp_path}/rows/"))
    assert open_files[1] - open_files[0] <= 2
    assert maps == [2, 4]


@pytest.mark.parametrize(
    "array", [np.arange(7, dtype=np.uint16), np.random.default_rng(0).random((3, 4, 5)).astype(np.float16), np.ones((2, 1), np.uint8)]
)
def test_mapped_arrays_are_the_saved_ones(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array)
    mapped = map_array(tmp_path / "a.npy")
    assert mapped.dtype == array.dtype
    assert np.array_equal(mapped, array)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0


def test_a_truncated_shard_is_named(image_rows: Callable[..., Rows], store: Store, tmp_path: Path) -> None:
    rows = image_rows(6)
    path = rows.shards[0].path
    data = store.storage.read(path)
    store.storage.write(path, data[:-10])
    with pytest.raises(ArtifactError, match=rf"{path}.*cut short"):
        Loader(rows, tmp_path)
    store.storage.write(path, data[:-10] + bytes(10))
    with pytest.raises(ArtifactError, match=rf"{path}.*wrong hash"):
        Loader(rows, tmp_path)
    assert not list(tmp_path.glob("rows/**/data.npy"))


def test_labels_out_of_range_and_wrong_counts_are_named(store: Store, tmp_path: Path) -> None:
    images = [np.zeros((2, 2, 1), np.uint8)] * 2
    with pytest.raises(ArtifactError, match=r"x\.parquet: labels from 0 to 3, there are 2 classes"):
        Loader(Rows("signals", store.uri, (write_shard(store, images, [0, 3]),), 2), tmp_path)
    with pytest.raises(ArtifactError, match=r"x\.parquet: 2 rows, 3 are recorded"):
        Loader(Rows("signals", store.uri, (write_shard(store, images, [0, 1], rows=3),), 2), tmp_path / "other")
    mixed = [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 3, 1), np.uint8)]
    with pytest.raises(ArtifactError, match=r"x\.parquet: not a whole image shard"):
        Loader(Rows("signals", store.uri, (write_shard(store, mixed, [0, 1]),), 2), tmp_path / "third")
    with pytest.raises(ConfigError, match="no shards"):
        Loader(Rows("signals", store.uri, (), 2), tmp_path)

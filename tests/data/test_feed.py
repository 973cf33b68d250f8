"""What a training is fed: augmentations drawn by key, batches made ahead, data that does not fit the node's cache."""

from __future__ import annotations

import dataclasses
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toy
from PIL import Image
from pydantic import TypeAdapter

from tokenloom.configs.schema import BaseConfig, RunConfig, identity
from tokenloom.models.core.augmentation import Augmentation, Colour, RandomCrop, RandomResizedCrop, TenCrop
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.data import node_cache
from tokenloom.tasks.data.feed import Feed
from tokenloom.tasks.data.held import Encoded, Flat
from tokenloom.tasks.data.loader import Loader, Rows, Shard, indices, share
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.augmentation import DRAWS, augmented
from tokenloom.tasks.modalities.image.decode import decode
from tokenloom.tasks.runtime.checks import check_augmentation
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Store, sha256_of

CPU = torch.device("cpu")
CROPPED = Augmentation(random_crop=RandomCrop(scale=(1.0, 1.5)), flip=0.5)


def jpeg(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def rows_of(store: Store, sizes: list[tuple[int, int]], shards: int = 1, shape: tuple[int, int] | None = (8, 8)) -> Rows:
    """Shards of colour JPEG files, one image of each size in each shard."""
    made = []
    for number in range(shards):
        random = np.random.default_rng(number)
        images = [jpeg(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(np.arange(len(sizes)) % 3, pa.int32())})
        sink = io.BytesIO()
        pq.write_table(table, sink)
        data = sink.getvalue()
        store.storage.write(f"shards/{number}.parquet", data)
        made.append(Shard(f"shards/{number}.parquet", "train", len(sizes), sha256_of(data), len(data)))
    return Rows("signals", store.uri, tuple(made), 3, shape=shape)


def small(**options: Any) -> ExecutionSettings:
    return ExecutionSettings(workers=1, device="cpu", **options)


def fed(rows: Rows, cache: Path, execution: ExecutionSettings, world: int = 1, steps: int = 6, start: int = 0, **more: Any) -> torch.Tensor:
    """The signals of all steps from ``start`` on, put together from ``world`` workers."""
    settings = TrainSettings(steps=steps, batch=6, seed=5, **more)
    parts = []
    for rank in range(world):
        loader = Loader(rows, cache, execution, settings.augment, lazy=True)
        feed = Feed(loader, settings, *share(6, rank, world), CPU)
        found = [feed.batch(step) for step in range(start, steps)]
        feed.close()
        parts.append(torch.stack([batch.signal for batch in found if batch is not None and batch.signal is not None]))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(
    "augmentation",
    [
        CROPPED,
        Augmentation(random_resized_crop=RandomResizedCrop()),
        Augmentation(ten_crop=TenCrop()),
        Augmentation(flip=0.5, colour=Colour(brightness=0.4, contrast=0.4, saturation=0.4)),
    ],
)
def test_any_number_of_workers_threads_and_caches_draws_the_same(augmentation: Augmentation, store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(12, 12)] * 5, shards=3)
    whole = fed(rows, tmp_path / "a", small(prefetch=0, decoders=1), augment=augmentation)
    assert whole.shape == (6, 6, 3, 8, 8)
    held_encoded = fed(rows, tmp_path / "b", small(prefetch=3, decoders=3, decoded_gb=0), world=3, augment=augmentation)
    assert torch.equal(whole, held_encoded), "decoded in one array or one by one, on one worker or three"
    assert torch.equal(whole[4:], fed(rows, tmp_path / "a", small(), start=4, augment=augmentation)), "a resumed run"
    assert not torch.equal(whole, fed(rows, tmp_path / "a", small())), "it varies at all"
    assert not torch.equal(whole, fed(rows, tmp_path / "a", small(), augment=dataclasses.replace(augmentation, flip=1.0)))


def test_an_item_varies_from_step_to_step(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(12, 12)], shape=(8, 8))
    loader = Loader(rows, tmp_path, augmentation=CROPPED)
    crops = [loader.get(np.zeros(4, int), Draws.whole(0, step, 4, stream="augment")).signal for step in range(4)]
    together = torch.cat([crop for crop in crops if crop is not None]).flatten(1)
    assert len({tuple(row) for row in together.tolist()}) > 8, "neither the step nor the row alone decides"
    plain = loader.get(np.zeros(1, int)).signal
    middle = decode(store_image(rows, store))[2:10, 2:10]
    assert plain is not None
    assert torch.equal(plain[0], torch.from_numpy(middle.copy()).permute(2, 0, 1).float().div(127.5).sub(1)), "without draws the middle"


def store_image(rows: Rows, store: Store) -> bytes:
    value: bytes = pq.read_table(io.BytesIO(store.storage.read(rows.shards[0].path)))["image"][0].as_py()
    return value


def numbers(**at: float) -> np.ndarray:
    u = np.zeros(DRAWS, np.float32)
    for name, value in at.items():
        u[int(name.removeprefix("u"))] = value
    return u


def test_crops_are_where_their_numbers_say() -> None:
    image = np.arange(12 * 12, dtype=np.uint8).reshape(12, 12, 1)
    exact = Augmentation(random_crop=RandomCrop(scale=(1.5, 1.5)))
    assert np.array_equal(augmented(image, (8, 8), exact, numbers()), image[:8, :8])
    assert np.array_equal(augmented(image, (8, 8), exact, numbers(u1=0.999, u2=0.5)), image[4:, 2:10])
    turned = dataclasses.replace(exact, flip=0.3)
    assert np.array_equal(augmented(image, (8, 8), turned, numbers(u32=0.29)), image[:8, :8][:, ::-1])
    assert np.array_equal(augmented(image, (8, 8), turned, numbers(u32=0.31)), image[:8, :8])
    ten = Augmentation(ten_crop=TenCrop(scale=1.5))
    views = [augmented(image, (8, 8), ten, numbers(u0=(view + 0.5) / 10)) for view in range(10)]
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for (top, left), plain, mirrored in zip(places, views[:5], views[5:]):
        assert np.array_equal(plain, image[top : top + 8, left : left + 8])
        assert np.array_equal(mirrored, plain[:, ::-1])
    whole = Augmentation(random_resized_crop=RandomResizedCrop(area=(1, 1), ratio=(1, 1)))
    assert np.array_equal(augmented(image, (12, 12), whole, numbers()), image)


def test_the_drawn_size_is_that_of_random_crop_arr() -> None:
    """Whole numbers from the size to ceil(size / 0.8), each as likely: 8, 9 and 10 of 8."""
    image, crop = (
        np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8),
        Augmentation(random_crop=RandomCrop(scale=(1, 1.25))),
    )
    for u, side in ((0.1, 8), (0.5, 9), (0.9, 10)):
        grown = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        assert np.array_equal(augmented(image, (8, 8), crop, numbers(u0=u, u1=0.999, u2=0.999)), grown[-8:, -8:])


def test_augmentation_is_identity_and_absent_ones_change_no_fingerprint() -> None:
    plain, varied = TrainSettings(steps=3), TrainSettings(steps=3, augment=CROPPED, window=2)
    assert "augment" not in identity(plain)
    assert "window" not in identity(plain)
    assert identity(varied)["augment"]["random_crop"]["scale"] == [1.0, 1.5]
    assert TypeAdapter(TrainSettings).validate_python(dataclasses.asdict(varied)) == varied
    paper = BaseConfig.model_validate({"recipe": "vq", "args": {"size": "VQ-16"}, "train": {"as": "paper"}}).train
    assert paper is not None
    assert paper.augment == Augmentation(random_crop=RandomCrop(scale=(1.0, 1.25)), flip=0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Augmentation(flip=1.5), r"augment\.flip=1\.5"),
        (lambda: RandomCrop(scale=(0.5, 1)), r"augment\.random_crop\.scale=\[0\.5, 1\]"),
        (lambda: Augmentation(random_crop=RandomCrop(), ten_crop=TenCrop()), "an item has one crop"),
        (lambda: Colour(contrast=-1), r"augment\.colour\.contrast=-1"),
        (lambda: ExecutionSettings(decoders=0), "decoders=0"),
    ],
)
def test_augmentations_that_cannot_be_are_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_what_is_not_varied_is_refused(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(8, 8)])
    with pytest.raises(ConfigError, match="items of kind series are not varied"):
        Loader(dataclasses.replace(rows, modality="series"), tmp_path, augmentation=CROPPED)
    with pytest.raises(ConfigError, match="a generator reads tokens"):
        Loader(dataclasses.replace(rows, kind="tokens"), tmp_path, augmentation=CROPPED)


def test_augmented_tokens_and_series_are_refused_before_work() -> None:
    train = {"steps": 1, "augment": {"flip": 0.5}}
    run = {"name": "x", "data": {"source": "digits", "size": 32}, "tokenizer": {"recipe": "vq", "train": train}}
    check_augmentation(RunConfig.model_validate(run))
    with pytest.raises(ConfigError, match=r"generator\.train\.augment: it reads tokens.*extract\.views"):
        check_augmentation(RunConfig.model_validate(run | {"generator": {"recipe": "raster", "train": train}}))
    series = {"kind": "series", "source": "sunspots", "series": {"history": 8, "horizon": 8}}
    with pytest.raises(ConfigError, match=r"tokenizer\.train\.augment: items of kind series"):
        check_augmentation(RunConfig.model_validate(run | {"data": series}))


def test_images_of_different_sizes_are_held_one_by_one(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(8, 12), (12, 8), (9, 9)], shards=2)
    loader = Loader(rows, tmp_path / "varied", augmentation=CROPPED)
    assert isinstance(loader.held, Encoded)
    plain = Loader(rows, tmp_path / "plain")
    assert isinstance(plain.held, Flat), "their middles have one size"
    assert np.array_equal(loader.items(np.arange(6))[0], plain.items(np.arange(6))[0])
    with pytest.raises(ArtifactError, match="different sizes"):
        Loader(dataclasses.replace(rows, shape=None), tmp_path / "none")


def test_the_first_step_waits_for_its_shards_alone(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(store, [(8, 8)] * 4, shards=6)
    last = indices(0, 0, 4, 24, [4] * 6, window=1)
    assert len(np.unique(last // 4)) == 1
    for i in set(range(6)) - set((last // 4).tolist()):
        store.storage.delete(rows.shards[i].path)  # what comes later is not there yet
    for execution in (small(prefetch=0), small(prefetch=0, decoded_gb=0)):
        loader = Loader(rows, tmp_path / str(execution.decoded_gb), execution, lazy=True)
        feed = Feed(loader, TrainSettings(steps=6, batch=4, window=1), 0, 4, CPU)
        assert feed.batch(0) is not None
        with pytest.raises(ArtifactError, match="missing"):
            feed.batch(1)


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_in_windows_every_epoch_is_a_permutation_of_all_rows(window: int) -> None:
    shards = [3, 1, 4, 1, 5, 2]
    seen = np.concatenate([indices(1, step, 5, 16, shards, window) for step in range(16)])
    for epoch in range(5):
        assert sorted(seen[16 * epoch : 16 * (epoch + 1)]) == list(range(16))
    owner = np.searchsorted(np.cumsum(shards), seen[:16], side="right")
    changes = [len(set(owner[i : i + 1]) | set(owner[i + 1 : i + 2])) - 1 for i in range(15)]
    if window == 1:
        assert sum(changes) == 5, "one shard after the other"
    if window >= 6:
        assert np.array_equal(seen[:5], indices(1, 0, 5, 16)), "all rows at once is the usual order"


def test_the_cache_keeps_its_limit_and_what_was_used_last(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(32, 32)] * 8, shards=5, shape=(32, 32))
    one = Loader(dataclasses.replace(rows, shards=rows.shards[:1]), tmp_path / "one", small(decoded_gb=0)).held
    size = node_cache._size(next((tmp_path / "one" / "rows" / node_cache.ENCODED).iterdir()))
    one.bring([0])
    loader = Loader(rows, tmp_path / "all", small(decoded_gb=0, cache_gb=2.5 * size / 1e9), lazy=True)
    for i in range(5):
        loader.bring([i])
    left = {folder.name for folder in (tmp_path / "all" / "rows" / node_cache.ENCODED).iterdir()}
    assert left == {rows.shards[i].sha256[:32] for i in (3, 4)}
    again = loader.items(np.arange(40))[0]
    assert np.array_equal(again, Loader(rows, tmp_path / "whole").items(np.arange(40))[0]), "what has gone is fetched again"


def test_data_in_the_cache_is_kept_by_threads_that_end(store: Store, tmp_path: Path) -> None:
    before = threading.active_count()
    rows = rows_of(store, [(8, 8)] * 4, shards=3)
    loader = Loader(rows, tmp_path, small(prefetch=2), CROPPED, lazy=True)
    feed = Feed(loader, TrainSettings(steps=50, batch=4, augment=CROPPED), 0, 4, CPU)
    assert feed.batch(0) is not None
    assert threading.active_count() > before
    feed.close()
    loader.pool.shutdown()
    assert threading.active_count() == before


def test_damage_in_the_background_is_told_by_the_step_that_needs_it(store: Store, tmp_path: Path) -> None:
    rows = rows_of(store, [(8, 8)] * 4, shards=2)
    store.storage.write(rows.shards[1].path, b"x" * rows.shards[1].size)
    loader = Loader(rows, tmp_path, small(prefetch=2), CROPPED, lazy=True)
    feed = Feed(loader, TrainSettings(steps=50, batch=8, augment=CROPPED), 0, 8, CPU)
    with pytest.raises(ArtifactError, match=r"1\.parquet.*wrong hash"):
        feed.batch(0)
    feed.close()


def test_files_of_other_programs_are_read_as_they_say(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for form in ("PNG", "WEBP"):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, form, lossless=True)
        assert np.array_equal(decode(sink.getvalue()), pixels)
    assert np.array_equal(decode(png.encode(pixels)), pixels)
    sink = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(sink, "JPEG")
    with pytest.raises(ValueError, match="mode CMYK"):
        decode(sink.getvalue())
    with pytest.raises(ValueError, match="damaged"):
        decode(jpeg(pixels)[:40])


def test_a_training_with_augmentation_ends_with_the_same_bits_however_it_is_fed(
    image_rows: Callable[..., Rows], store: Store, tmp_path: Path
) -> None:
    rows = dataclasses.replace(image_rows(40), shape=(4, 4))
    ended = []
    remove = toy.install()
    try:
        for name, prefetch in (("a", 0), ("b", 3)):
            job = toy.job(store, rows, None, folder=f"tokenizer/toy-{name}", steps=6, batch=8, augment=CROPPED)
            job = dataclasses.replace(job, execution=dataclasses.replace(job.execution, prefetch=prefetch), root=str(tmp_path / name))
            toy.train(job)
            ended.append(store.storage.read(f"{job.folder}/weights.safetensors"))
    finally:
        remove()
    assert ended[0] == ended[1]

"""How images are stored: their own bytes where nothing has to change, larger ones for crops, and the same by threads and by actors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import config, encoded, paths_of, rows_of, two_classes
from inline_runs import in_process
from mixed_images import painting, whole
from PIL import Image

from tokenloom.configs.schema import ClusterConfig, DataConfig
from tokenloom.models.core.augmentation import Augmentation, RandomCrop
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.making import units
from tokenloom.tasks.making.units import Maker, Meter
from tokenloom.tasks.modalities.image.decode import decode
from tokenloom.tasks.modalities.image.fit import fitted
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Store

SQUARE = DataConfig(source="x", size=64, channels=3, fit="crop")


def test_what_has_to_change_and_what_keeps_its_bytes() -> None:
    kept = {end for end, data in whole(1) if fitted(data, SQUARE)[1] is not None}
    assert kept == {".right.jpg"}, "of all kinds only the one of the right size and mode"
    same = painting(3, (64, 64))
    files = {"JPEG": {}, "PNG": {}, "WEBP": {"quality": 80}}
    for kind, options in files.items():
        data = encoded(same, kind, **options)
        pixels, own = fitted(data, SQUARE)
        assert own == data
        assert np.array_equal(pixels, decode(data)), kind
    exif = Image.Exif()
    exif[0x0112] = 3
    for odd in (encoded(same, "JPEG", exif=exif), encoded(same.convert("L")), encoded(same, "BMP"), encoded(same.convert("RGBA"))):
        assert fitted(odd, SQUARE)[1] is None


@pytest.mark.parametrize(("encode", "head"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_the_form_of_what_changes(tmp_path: Path, store: Store, encode: str, head: bytes) -> None:
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encoded(painting(i, (40, 30))))
    made = ingest("p", config(f"folder:{tmp_path}", channels=3, fit="crop", **({"encode": encode} if encode != "png" else {})), store)
    rows = rows_of(store, made)
    assert all(row["image"].startswith(head) and decode(row["image"]).shape == (8, 8, 3) for row in rows)


@pytest.mark.parametrize(("size", "stored"), [((200, 100), (144, 72)), ((70, 66), (70, 66)), ((30, 40), (64, 85)), ((900, 64), (144, 64))])
def test_images_are_stored_for_crops(size: tuple[int, int], stored: tuple[int, int]) -> None:
    pixels, own = fitted(encoded(painting(1, size), "JPEG"), SQUARE.model_copy(update={"store_scale": 1.125}))
    assert pixels.shape == (stored[1], stored[0], 3)
    assert (own is not None) == (size == stored)


def test_stored_larger_is_cropped_when_it_is_trained_on(tmp_path: Path, store: Store) -> None:
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(encoded(painting(i, (96 + i, 80))))
    made = ingest("p", config(f"folder:{tmp_path}", size=64, channels=3, fit="crop", store_scale=1.25), store)
    rows = Rows.of(store.record(made.artifact).notes, store.uri, "train")
    augment = Augmentation(random_crop=RandomCrop(scale=(1.0, 1.25)), flip=0.5)
    loader = Loader(rows, store.cache, ExecutionSettings(decoded_gb=0), augment)
    idx = np.arange(4)
    draws = [Draws(0, step, 8, 0, 4, 4, "cpu", "augment") for step in (0, 0, 1)]  # type: ignore[arg-type]
    found = [loader.get(idx, each).signal for each in draws]
    assert found[0] is not None
    assert found[0].shape == (4, 3, 64, 64)
    assert bool((found[0] == found[1]).all())
    assert not bool((found[0] == found[2]).all())
    with pytest.raises(ValueError, match="goes with fit: crop"):
        config("x", store_scale=1.5)


def test_actors_make_what_threads_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_classes(tmp_path)
    (images / "cat" / "broken.png").write_bytes(b"?")
    stores = [Store(str(tmp_path / name), tmp_path / f"{name}-root") for name in ("threads", "actors")]
    calls: list[dict[str, Any]] = []

    def pool(actor: type, given: Any, asked: Any, *rest: Any, **options: Any) -> Any:
        calls.append(options)
        return in_process(actor, given, list(reversed(asked)), *rest, **options)  # in any order

    monkeypatch.setattr(units, "shared_out", pool)
    seen: list[dict[str, float]] = []
    report = lambda stage, done, total, numbers: seen.append(numbers)  # noqa: E731
    made = [
        ingest("p", config(f"folder:{images}"), store, report, ClusterConfig(ingest_actors=actors)) for store, actors in zip(stores, (0, 3))
    ]
    assert made[0].artifact.fingerprint == made[1].artifact.fingerprint
    assert paths_of(stores[0], made[0]) == paths_of(stores[1], made[1])
    assert made[0].metrics == made[1].metrics
    assert [(each["actors"], each["gpus"]) for each in calls] == [(3, 0)]
    assert {"images_per_second", "mb_per_second", "minutes_left", "rejected"} <= seen[-1].keys()
    assert seen[-1]["minutes_left"] == 0


def test_files_out_of_reach_are_named(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_classes(tmp_path)
    made = Maker.make

    def elsewhere(self: Maker, unit: Any) -> Any:
        images.rename(tmp_path / "not-on-this-node") if images.exists() else None
        return made(self, unit)

    monkeypatch.setattr(Maker, "make", elsewhere)
    monkeypatch.setattr(units, "shared_out", in_process)
    with pytest.raises(StepError, match=r"is not within reach of the node .*ingest_actors: 0"):
        ingest("p", config(f"folder:{images}"), store, cluster=ClusterConfig(ingest_actors=1))


def test_the_meter_leaves_out_what_was_there() -> None:
    meter = Meter(100)
    meter.add({"rejects": [], "left": True}, 50)
    assert "minutes_left" not in meter.numbers()
    meter.add({"rejects": [{}], "read": 5_000_000}, 25)
    numbers = meter.numbers()
    assert numbers["rejected"] == 1
    assert numbers["minutes_left"] == pytest.approx(1 / numbers["images_per_second"] * 25 / 60, rel=1e-3)


def test_a_picture_of_every_kind_is_a_picture() -> None:
    for end, data in whole(0):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        assert fitted(data, SQUARE)[0].shape == (64, 64, 3), end

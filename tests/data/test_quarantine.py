"""Images that cannot be used, sources that are missing, and how images are fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import config, encoded, picture, quarantine, rows_of, two_classes
from PIL import Image

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.matching import split_of
from tokenloom.tasks.modalities.image.fit import fit
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Store


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return two_classes(tmp_path)


def bad_files(images: Path) -> dict[str, str]:
    cat = images / "cat"
    (cat / "corrupt.png").write_bytes(b"not an image")
    (cat / "short.png").write_bytes(picture(cat / "whole.png", 1, (50, 50)).read_bytes()[:900])
    (cat / "whole.png").unlink()
    (cat / "empty.png").write_bytes(b"")
    (cat / "notes.pdf").write_bytes(b"%PDF")
    picture(cat / "huge.png", 2, (40, 40))
    picture(cat / "large.png", 3, (9, 8))
    Image.fromarray(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)).save(cat / "float.tif")
    (cat / "caption.txt").write_text("not an image, and not meant as one")
    (cat / ".hidden").write_text("ignored")
    return {
        "corrupt.png": "corrupt or unreadable",
        "short.png": "corrupt or unreadable",
        "empty.png": "empty file",
        "notes.pdf": "not an image format",
        "huge.png": "oversized: 40x40 is more than max_pixels=1000",
        "large.png": "9x8 is larger than size=8, and fit: pad never resizes",
        "float.tif": "wrong mode F",
    }


def test_what_cannot_be_used_is_quarantined_with_its_reason(store: Store, images: Path) -> None:
    settings = config(f"folder:{images}", max_pixels=1000)
    first = ingest("pets", settings, store)
    expected = bad_files(images) | {"short.png": "oversized"}
    second = ingest("pets", settings, store)
    assert second.metrics["rejected"] == len(expected)
    reasons = quarantine(store, second)
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
    assert second.artifact == first.artifact, "rejects make no new dataset"
    assert ingest("pets", settings, store).status == "cached", "and are not tried again"
    assert rows_of(store, second) == rows_of(store, first)


def test_truncated_images_are_not_filled_in(store: Store, images: Path) -> None:
    bad_files(images)
    reasons = quarantine(store, ingest("pets", config(f"folder:{images}"), store))
    assert "corrupt or unreadable" in reasons["short.png"]
    assert "larger than size" in reasons["huge.png"]


def test_on_bad_stop_names_the_file_also_when_it_is_known(store: Store, images: Path) -> None:
    bad = images / "dog" / "bad.png"
    bad.write_bytes(b"?")
    stop = config(f"folder:{images}", on_bad="stop")
    with pytest.raises(StepError, match=f"{bad}: corrupt"):
        ingest("pets", stop, store)
    assert store.records() == []
    ingest("pets", config(f"folder:{images}"), store)
    with pytest.raises(StepError, match=f"{bad}: corrupt"):
        ingest("pets", stop, store)


def test_decompression_bombs_are_quarantined(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    picture(images / "cat" / "bomb.png", 2, (40, 40))
    assert "oversized" in quarantine(store, ingest("pets", config(f"folder:{images}"), store))["bomb.png"]


def test_sources_that_are_missing_or_empty_stop_before_work(store: Store, images: Path, tmp_path: Path) -> None:
    cases = {
        f"folder:{tmp_path}/none": "no such folder",
        f"idx:{tmp_path}/none": "no such folder",
        f"idx:{images}": "no .*-images-idx3-ubyte",
        f"parquet:{tmp_path}/*.parquet": "no file matches",
        f"webdataset:{tmp_path}/*.tar": "no file matches",
        "imagenet": "unknown; there are: digits",
        "folder:": "unknown",
        "digits:5": "unknown",
    }
    for source, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            ingest("x", config(source), store)
    assert not store.storage.list()


@pytest.mark.parametrize("content", [None, b"", b"broken"])
def test_a_class_without_a_usable_image_stops_before_work(store: Store, images: Path, content: bytes | None) -> None:
    (images / "empty").mkdir()
    if content is not None:
        (images / "empty" / "x.png").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{images}/empty has no (usable )?image"):
        ingest("pets", config(f"folder:{images}"), store)
    assert not store.records()


def test_too_little_data_for_the_splits_is_a_config_error(store: Store, tmp_path: Path) -> None:
    picture(tmp_path / "few" / "a" / "0.png")
    with pytest.raises(ConfigError, match="split empty"):
        ingest("few", config(f"folder:{tmp_path}/few"), store)


def test_duplicates_across_splits_are_counted(store: Store, images: Path) -> None:
    assert ingest("pets", config(f"folder:{images}"), store).metrics["duplicates_across_splits"] == 0
    original = next(p for p in sorted(images.rglob("*.png")) if split_of(p.relative_to(images).as_posix(), config("x")) == "train")
    for i in range(40):
        (images / "dog" / f"copy{i}.png").write_bytes(original.read_bytes())
    outcome = ingest("pets", config(f"folder:{images}"), store)
    copies = [split_of(f"dog/copy{i}.png", config("x")) for i in range(40)]
    assert outcome.metrics["duplicates_across_splits"] == copies.count("validation") > 0


def test_splits_depend_on_key_and_seed_alone() -> None:
    keys = [f"item-{i}" for i in range(4000)]
    one = [split_of(key, config("x", validation=0.2, test=0.1)) for key in keys]
    assert abs(one.count("validation") / 4000 - 0.2) < 0.02
    assert abs(one.count("test") / 4000 - 0.1) < 0.02
    assert one != [split_of(key, config("x", validation=0.2, test=0.1, seed=1)) for key in keys]


def test_fits() -> None:
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 8:] = 200
    assert fit(wide, config("x", size=8, fit="resize"))[:, :, 0].mean(0)[[0, -1]].tolist() == [0, 200]
    middle = fit(wide, config("x", size=8, fit="crop"))
    assert middle[:, :4].max() == 0
    assert middle[:, 4:].min() == 200
    padded = fit(wide, config("x", size=20, fit="pad"))[:, :, 0]
    assert np.array_equal(padded[6:14, 2:18], wide)
    assert padded.sum() == wide.sum()


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, config("x", size=8, fit="resize"))
    assert small.min() > 100
    assert small.max() < 155


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation: int) -> None:
    pixels = np.zeros((6, 8), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = fit(encoded(Image.fromarray(pixels), exif=exif), config("x", size=8, fit="pad"))[:, :, 0]
    row, column = np.argwhere(image == 255)[0].tolist()
    high, wide = (6, 8) if orientation < 5 else (8, 6)
    top, left = (8 - high) // 2, (8 - wide) // 2
    corners = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    assert (row - top, column - left) == (corners[orientation][0] * (high - 1), corners[orientation][1] * (wide - 1))


def test_modes_become_grey_or_rgb() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert fit(encoded(clear), config("x", channels=3)).min() == 255, "transparent is white"
    sixteen = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert np.unique(fit(encoded(sixteen), config("x"))).tolist() == [0x80]
    palette = Image.new("RGB", (8, 8), (255, 0, 0)).quantize(4)
    assert fit(encoded(palette), config("x", channels=3))[0, 0].tolist() == [255, 0, 0]
    assert fit(encoded(Image.new("CMYK", (8, 8)), "TIFF"), config("x", channels=3)).shape == (8, 8, 3)
    assert fit(encoded(Image.new("1", (8, 8), 1)), config("x")).max() == 255

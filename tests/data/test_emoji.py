"""The source ``emoji``: what it lists, that its pictures are whole and in the middle, and that variants stay with what they vary."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from image_files import config, rows_of
from PIL import features

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.found import found
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.drawn.code_points import GROUPS, runs
from tokenloom.tasks.modalities.image.drawn.emoji import _font_file, draw
from tokenloom.tasks.modalities.image.sources import open_source
from tokenloom.tasks.store.artifacts import Store

POINTS = [point for text in GROUPS.values() for point in runs(text)]
SHAPED = pytest.mark.skipif(not (features.check("raqm") and features.check("fribidi")), reason="Pillow cannot draw sequences here")


def test_the_table_is_what_the_font_has_in_colour_under_a_name() -> None:
    tt = pytest.importorskip("fontTools.ttLib")
    font = tt.TTFont(str(_font_file()), lazy=True)
    names, layers = font.getBestCmap(), font["COLR"].ColorLayers
    coloured = {point for point, name in names.items() if name in layers and unicodedata.name(chr(point), None)}
    assert len(POINTS) == len(set(POINTS)) == 1463
    assert set(POINTS) <= coloured
    if unicodedata.unidata_version.startswith("14."):  # later ones name more
        assert set(POINTS) == coloured


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (40, 72)])
def test_pictures_are_whole_and_in_the_middle(shape: tuple[int, int]) -> None:
    # The widest, the tallest, the smallest, and some of the others.
    for point in (0x1F441, 0x1F450, 0x1F396, 0x1F52A, 0x25AA, *POINTS[::60]):
        picture = draw(chr(point), shape, _font_file())
        assert picture.shape == (*shape, 3)
        ink = (255 - picture.astype(int)).max(2) > 90
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        for found_, side in ((rows, shape[0]), (columns, shape[1])):
            first, last = found_[0], side - 1 - found_[-1]
            assert abs(first - last) <= max(2, min(shape) // 10), (hex(point), first, last)
            assert min(first, last) >= (1 if min(shape) >= 40 else 0), (hex(point), first, last)


def test_ingest_has_names_groups_and_the_licence(store: Store) -> None:
    outcome = ingest("emoji", config("emoji", size=24, channels=3, limit=64, shard_rows=64), store)
    record = store.record(outcome.artifact)
    rows = {row["key"]: row for row in rows_of(store, outcome)}
    assert len(rows) == 64
    assert record.notes["classes"] == sorted(GROUPS)
    assert "CC BY-SA 4.0" in record.notes["licence"]
    assert "CC BY-SA 4.0" in found(record)
    face = rows["263A"]
    assert (face["caption"], record.notes["classes"][face["label"]]) == ("white smiling face", "smileys")
    pixels = png.decode(face["image"])
    assert pixels.shape == (24, 24, 3)
    assert pixels[12, 6].tolist()[2] < 120 < pixels[12, 6].tolist()[0], "a face is yellow"


@SHAPED
def test_variants_are_in_the_split_of_what_they_vary() -> None:
    source = open_source(config("emoji:variants", size=24, channels=3))
    items = list(source.items(source.entries[0]))
    assert len(items) == 2190
    captions = {item.key: item.caption for item in items}
    assert captions["1F44B-1F3FD"] == "waving hand sign, medium skin tone"
    assert captions["1F469-1F3FF-200D-1F9B1"] == "woman, dark skin tone, curly hair"
    splits: dict[str, set[str | None]] = {}
    for item in items:
        splits.setdefault(item.key.split("-")[0], set()).add(item.split)
    assert all(len(found_) == 1 for found_ in splits.values())
    assert {split for found_ in splits.values() for split in found_} == {"train", "validation"}
    plain = open_source(config("emoji", size=24, channels=3))
    alone = {item.key: item.split for item in plain.items(plain.entries[0])}
    assert all(splits[key] == {split} for key, split in alone.items())


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="emoji:faces"):
        open_source(config("emoji:faces"))
    monkeypatch.setattr(features, "check", lambda name: name != "raqm")
    with pytest.raises(ConfigError, match="without Raqm"):
        open_source(config("emoji:variants"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tokenloom\[emoji\]"):
        open_source(config("emoji"))

"""Ingest: shards, splits, and appending: what is known keeps its shard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import config, ordered, paths_of, picture, rows_of, two_classes
from PIL import Image

from tokenloom.configs.schema import DataConfig
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.matching import split_of
from tokenloom.tasks.making import units as making
from tokenloom.tasks.modalities.image import fit as fitting
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.decode import decode
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.lineage import collect
from tokenloom.tasks.store.storage import STAGING


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return two_classes(tmp_path)


def test_digits_are_padded_never_resized(store: Store) -> None:
    outcome = ingest("digits", DataConfig(source="digits", size=32, fit="pad", validation=0.2, limit=200), store)
    rows = rows_of(store, outcome)
    assert len(rows) == outcome.metrics["train"] + outcome.metrics["validation"] == 200
    image = png.decode(rows[0]["image"])
    assert image.shape == (32, 32, 1)
    outside = np.pad(np.zeros((28, 28), bool), 2, constant_values=True)
    assert not image[outside].any()
    assert image[2:30, 2:30].any()
    assert {row["label"] for row in rows} == set(range(10)), "a limit keeps all classes"
    assert store.record(outcome.artifact).notes["classes"] == [str(i) for i in range(10)]


def test_one_split_a_shard_named_by_content(store: Store, images: Path) -> None:
    outcome = ingest("pets", config(f"folder:{images}", test=0.2), store)
    notes = store.record(outcome.artifact).notes
    assert notes["classes"] == ["cat", "dog"]
    assert (notes["size"], notes["channels"]) == (8, 1)
    rows = rows_of(store, outcome)
    assert {row["key"] for row in rows} == {f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)}
    for row in rows:
        assert row["split"] == split_of(row["key"], config("x", test=0.2))
        assert row["label"] == ["cat", "dog"].index(row["key"].split("/")[0])
        assert np.array_equal(decode(row["image"])[:, :, 0], np.asarray(Image.open(images / row["key"])))
    for shard in notes["shards"]:
        assert shard["path"] == f"{outcome.artifact.folder}/shards/{shard['split']}-{shard['sha256'][:12]}.parquet"
        assert shard["rows"] <= 4
    loader = Loader(Rows.of(notes, store.uri, "train"), store.cache)
    assert len(loader) == outcome.metrics["train"]


def test_same_input_same_bytes_wherever_and_however_often(images: Path, tmp_path: Path) -> None:
    found = []
    for name, cpus in (("one", 1), ("two", 4)):
        store = Store(str(tmp_path / name), tmp_path / f"{name}-root")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
            found.append((outcome := ingest("pets", config(f"folder:{images}"), store), paths_of(store, outcome)))
    assert found[0][0].artifact.fingerprint == found[1][0].artifact.fingerprint
    assert found[0][1] == found[1][1]


def test_known_files_are_cached_without_reading_them(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(f"folder:{images}")
    before = scan(settings, store)
    assert (before.fingerprint, before.new) == (None, 20)
    assert not store.storage.list(), "a scan writes nothing"
    first = ingest("pets", settings, store)
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: pytest.fail(f"read {self}") if self.suffix == ".png" else Path.open(self, "rb").read()
    )
    assert scan(settings, store).fingerprint == first.artifact.fingerprint
    again = ingest("pets", settings, store)
    assert (again.status, again.artifact, again.metrics) == ("cached", first.artifact, first.metrics)
    assert ingest("other-name", settings, store).artifact == first.artifact


def test_touched_files_are_known_by_their_content(store: Store, images: Path) -> None:
    first = ingest("pets", config(f"folder:{images}"), store)
    os.utime(images / "cat" / "0.png", ns=(1, 1))
    assert ingest("pets", config(f"folder:{images}"), store).artifact == first.artifact


def test_appended_files_make_new_shards_only(store: Store, images: Path) -> None:
    settings = config(f"folder:{images}")
    first = ingest("pets", settings, store)
    before = paths_of(store, first)
    for i in range(10, 16):
        picture(images / "cat" / f"{i}.png", i)
    picture(images / "ant" / "0.png", 999)
    assert scan(settings, store).new == 7
    assert scan(settings, store).reason == f"7 new files (against {first.artifact.id})"
    second = ingest("pets", settings, store)
    assert second.artifact.fingerprint != first.artifact.fingerprint
    after = paths_of(store, second)
    assert before.items() <= after.items(), "known shards stay, in the earlier artifact's folder"
    assert all(path.startswith(f"{second.artifact.folder}/") for path in after.keys() - before.keys())
    rows = rows_of(store, second)
    assert len(rows) == 27
    assert store.record(second.artifact).notes["classes"] == ["ant", "cat", "dog"], "as if it had been there from the first"
    assert {row["label"] for row in rows if row["key"].startswith("ant")} == {0}
    loader = Loader(Rows.of(store.record(second.artifact).notes, store.uri, "train"), store.cache)
    labels = loader.items(np.arange(len(loader)))[1].tolist()
    assert labels == [row["label"] for row in ordered(store, second, "train")], "known shards hold the numbers of then"
    assert ingest("pets", settings, store).status == "cached"
    assert store.verify(first.artifact, deep=True) == []
    assert collect(store, dry_run=True) == []


def test_changed_and_removed_files_remake_their_shards_only(store: Store, images: Path) -> None:
    settings = config(f"folder:{images}")
    first = ingest("pets", settings, store)
    before = {row["key"]: row for row in rows_of(store, first)}
    picture(images / "cat" / "0.png", 12345)
    (images / "dog" / "9.png").unlink()
    assert "1 changed file, 1 removed file" in scan(settings, store).reason
    second = ingest("pets", settings, store)
    after = {row["key"]: row for row in rows_of(store, second)}
    assert before.keys() - after.keys() == {"dog/9.png"}
    assert [key for key in after if after[key] != before[key]] == ["cat/0.png"]
    assert len(paths_of(store, second).keys() - paths_of(store, first).keys()) <= 2


def test_going_back_finds_the_earlier_dataset(store: Store, images: Path) -> None:
    settings = config(f"folder:{images}")
    first = ingest("pets", settings, store)
    extra = picture(images / "cat" / "more.png", 77)
    assert ingest("pets", settings, store).artifact != first.artifact
    extra.unlink()
    assert ingest("pets", settings, store).artifact == first.artifact


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_a_lost_shard_is_made_again_alone_with_the_same_bytes(
    store: Store, images: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(f"folder:{images}")
    first = ingest("pets", settings, store)
    before = paths_of(store, first)
    path = store.storage.local_path(sorted(before)[1])
    path.unlink() if damage == "remove" else path.write_bytes(b"PAR1")
    assert scan(settings, store).reason == f"1 shard missing or cut short (against {first.artifact.id})"
    made: list[Any] = []
    original = making.make_shard
    monkeypatch.setattr(making, "make_shard", lambda *a: made.append(a) or original(*a))
    again = ingest("pets", settings, store)
    assert (again.status, again.artifact, len(made)) == ("ran", first.artifact, 1)
    assert paths_of(store, again) == before


def test_after_an_interruption_finished_shards_are_not_made_again(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(f"folder:{images}")
    read: list[str] = []
    original = fitting.fit_item

    def interrupted(item: Any, *rest: Any) -> Any:
        if len(read) == 9:
            raise KeyboardInterrupt
        read.append(item.key)
        return original(item, *rest)

    monkeypatch.setattr(fitting, "fit_item", interrupted)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        ingest("pets", settings, store)
    assert store.records() == []
    again: list[str] = []
    monkeypatch.setattr(fitting, "fit_item", lambda item, *rest: again.append(item.key) or original(item, *rest))
    ingest("pets", settings, store)
    assert not set(again) & set(read[:8]), "two shards of four were finished"
    assert len(again) == 12
    assert not store.storage.list(STAGING)

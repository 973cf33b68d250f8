"""A dataset is what its source holds now: the same data give the same classes and fingerprint, whatever was there before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import config, ordered, rows_of
from image_sources import FORMS, SHORT, own_hub, png, rows_of_classes, write, write_parquet, write_tar

from tokenloom.tasks.data import ingest as module
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.matching import read_table
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store, Work

pytestmark = pytest.mark.usefixtures("own_hub")
__all__ = ["own_hub"]


def classes(store: Store, outcome: Outcome) -> list[str]:
    return list(store.record(outcome.artifact).notes["classes"])


def labelled(store: Store, outcome: Outcome) -> dict[str, str]:
    """Class name of each key, as the loader of both splits gives it."""
    record, found = store.record(outcome.artifact), {}
    keys = [row["key"] for row in rows_of(store, outcome)]
    splits = [Rows.of(record.notes, store.uri, split) for split in ("train", "validation")]
    listed = [row["key"] for split in ("train", "validation") for row in ordered(store, outcome, split)]
    labels = np.concatenate([Loader(rows, store.cache).items(np.arange(len(rows)))[1] for rows in splits])
    found = {key: record.notes["classes"][label] for key, label in zip(listed, labels)}
    assert found.keys() == set(keys)
    return found


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.mark.parametrize("form", SHORT)
def test_a_class_that_is_gone_goes(store: Store, tmp_path: Path, form: str) -> None:
    data, rest = tmp_path / "data", rows_of_classes(bee=8, dog=8)
    source = write(form, emptied(data), [*rows_of_classes(cat=8), *rest])
    assert classes(store, ingest("pets", config(source, shard_rows=16), store)) == ["bee", "cat", "dog"]
    write(form, emptied(data), rest)
    second = ingest("pets", config(source, shard_rows=16), store)
    assert classes(store, second) == ["bee", "dog"]
    fresh = Store(str(tmp_path / "fresh"), tmp_path / "fresh-root")
    assert ingest("pets", config(source, shard_rows=16), fresh).artifact.fingerprint == second.artifact.fingerprint


@pytest.mark.parametrize("form", SHORT)
def test_the_way_to_the_data_does_not_count(tmp_path: Path, form: str) -> None:
    data, parts, found = tmp_path / "data", {"a": rows_of_classes(cat=16, dog=12), "b": rows_of_classes(ant=14)}, []
    for number, (order, always) in enumerate((("ab", False), ("ab", True), ("ba", True))):
        store = Store(str(tmp_path / f"{number}"), tmp_path / f"{number}-root")
        emptied(data)
        for part in order:
            source = write(form, data, parts[part], part)
            if always or part == order[-1]:
                outcome = ingest("pets", config(source, shard_rows=16), store)
        found.append((outcome.artifact.fingerprint, classes(store, outcome), labelled(store, outcome)))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == ["ant", "cat", "dog"]


def test_known_shards_stay_and_their_numbers_are_read_as_they_were_written(store: Store, tmp_path: Path) -> None:
    source = write("folder", tmp_path, rows_of_classes(cat=16, dog=12))
    first = ingest("pets", config(source, shard_rows=16), store)
    write("folder", tmp_path, rows_of_classes(ant=14))
    second = ingest("pets", config(source, shard_rows=16), store)
    before, after = (store.record(outcome.artifact).notes for outcome in (first, second))
    assert {shard["path"] for shard in before["shards"]} < {shard["path"] for shard in after["shards"]}
    assert after["numberings"] == [[1, 2]]
    assert all(name == key.split("/")[0] for key, name in labelled(store, second).items())
    assert "numberings" not in before
    shutil.rmtree(tmp_path / "images" / "cat")
    third = ingest("pets", config(source, shard_rows=16), store)
    assert classes(store, third) == ["ant", "dog"]
    assert all(name == key.split("/")[0] for key, name in labelled(store, third).items())


def test_the_same_items_by_another_way_keep_the_shards_that_are_there(store: Store, tmp_path: Path) -> None:
    source = write("folder", tmp_path, rows_of_classes(cat=16, dog=12))
    first = ingest("pets", config(source, shard_rows=16), store)
    before = rows_of(store, first)
    removed = {path: path.read_bytes() for path in sorted((tmp_path / "images").rglob("*1.png"))}
    for path in removed:
        path.unlink()
    ingest("pets", config(source, shard_rows=16), store)
    for path, data in removed.items():
        path.write_bytes(data)
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"?")
    again = ingest("other", config(source, shard_rows=16), store)
    assert again.artifact == first.artifact
    assert rows_of(store, again) == before
    assert again.metrics["rejected"] == 1


def as_before(store: Store, outcome: Outcome, gone: tuple[str, ...] = ()) -> Outcome:
    """The dataset as the first version wrote it: named by its shards, without what has been noted since."""
    record = store.record(outcome.artifact)
    names = [*record.notes["classes"], *gone]
    shards = sorted(shard["sha256"] for shard in record.notes["shards"])
    step = StepSpec("ingest", 1, "dataset", record.artifact.name, {"data": record.config["data"], "classes": names, "shards": shards})

    def body(work: Work) -> dict[str, Any]:
        for shard in record.notes["shards"]:
            work.add_file(shard["path"], rows=shard["rows"])
        for table, schema in (("entries", module._ENTRIES), ("items", module._ITEMS), ("quarantine", module._QUARANTINE)):
            known = [f for f in schema if f.name not in ("ctime", "stamp", "caption_bytes", "beside", "retry")]
            rows = read_table(store, record, f"{table}.parquet")
            work.put(f"{table}.parquet", module.table_bytes(rows, module.pa.schema(known)))
        kept = {key: value for key, value in record.notes.items() if key != "found"}
        work.notes |= kept | {"classes": names}
        return record.metrics

    made = store.execute(step, body)
    shutil.rmtree(store.storage.local_path(record.artifact.folder).joinpath("record.json"), ignore_errors=True)
    store.storage.delete(f"{record.artifact.folder}/record.json")
    return made


@pytest.mark.parametrize("form", FORMS[:3])
def test_datasets_of_the_first_version_are_known_and_continued(store: Store, tmp_path: Path, form: str) -> None:
    data = emptied(tmp_path / "data")
    source = write(form, data, rows_of_classes(cat=16, dog=12))
    if form == "folder":
        (tmp_path / "data/images/cat/cat-001.txt").write_text("a cat")
    old = as_before(store, ingest("pets", config(source, shard_rows=16), store))
    assert scan(config(source, shard_rows=16), store).fingerprint == old.artifact.fingerprint
    assert ingest("pets", config(source, shard_rows=16), store).status == "cached"
    write(form, data, rows_of_classes(ant=14), "b")
    new = ingest("pets", config(source, shard_rows=16), store)
    kept = {shard["path"] for shard in store.record(old.artifact).notes["shards"]}
    assert kept < {shard["path"] for shard in store.record(new.artifact).notes["shards"]}
    fresh = Store(str(tmp_path / "fresh"), tmp_path / "fresh-root")
    assert ingest("pets", config(source, shard_rows=16), fresh).artifact.fingerprint == new.artifact.fingerprint


def test_a_gone_class_of_the_first_version_is_noticed(store: Store, tmp_path: Path) -> None:
    source = write("folder", tmp_path, rows_of_classes(cat=16, dog=12))
    as_before(store, ingest("pets", config(source, shard_rows=16), store), gone=("lynx",))
    assert "1 class without an item" in scan(config(source, shard_rows=16), store).reason
    assert classes(store, ingest("pets", config(source, shard_rows=16), store)) == ["cat", "dog"]


def swapped(path: Path, data: bytes) -> None:
    """Put other content in a file's place that has its size and its times, as copying with times does."""
    before = path.stat()
    assert len(data) == before.st_size
    fresh = path.with_name("fresh")
    fresh.write_bytes(data)
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_was_replaced_is_noticed(store: Store, tmp_path: Path, form: str) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    data = emptied(tmp_path / "data")
    source = write(form, data, rows)
    first = ingest("pets", config(source, shard_rows=16), store)
    if form == "hf":
        write(form, data, [(rows[0][0], rows[0][1], rows[1][2]), *rows[1:]])
    else:
        other = emptied(tmp_path / "other")
        write(form, other, [(*rows[0][:2], png(77)), *rows[1:]])
        changed = next(
            path
            for path in sorted(other.rglob("*"))
            if path.is_file() and path.read_bytes() != (data / path.relative_to(other)).read_bytes()
        )
        target = data / changed.relative_to(other)
        if changed.stat().st_size != target.stat().st_size:
            pytest.skip("the images of these seeds differ in size")
        swapped(target, changed.read_bytes())
    assert scan(config(source, shard_rows=16), store).new == 1
    second = ingest("pets", config(source, shard_rows=16), store)
    assert second.artifact != first.artifact


def test_a_class_of_a_hub_folder_that_was_renamed_is_noticed(store: Store, tmp_path: Path) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    data = emptied(tmp_path / "data")
    source = write("hf", data, rows)
    ingest("pets", config(source, shard_rows=16), store)
    write("hf", data, [(key, {"cat": "lynx"}.get(name, name), image) for key, name, image in rows])
    assert classes(store, ingest("pets", config(source, shard_rows=16), store)) == ["dog", "lynx"]


def test_what_stands_in_another_file_is_noticed(store: Store, tmp_path: Path) -> None:
    """Class names in one Parquet file of two, labels in one tar file of two, a table of captions: changes that no image shows."""
    images, numbers = [png(i) for i in range(16)], [i % 2 for i in range(16)]
    write_parquet(tmp_path / "p" / "a.parquet", {"image": images[:8], "label": numbers[:8]}, ["cat", "dog"])
    write_parquet(tmp_path / "p" / "b.parquet", {"image": images[8:], "label": numbers[8:]})
    outcome = ingest("p", config(f"parquet:{tmp_path}/p"), store)
    assert classes(store, outcome) == ["cat", "dog"]
    write_parquet(tmp_path / "p" / "a.parquet", {"image": images[:8], "label": numbers[:8]}, ["cat", "eel"])
    assert classes(store, ingest("p", config(f"parquet:{tmp_path}/p"), store)) == ["cat", "eel"]

    write_tar(tmp_path / "w" / "a.tar", [(f"{i}.png", data) for i, data in enumerate(images)])
    first = ingest("w", config(f"webdataset:{tmp_path}/w"), store)
    assert classes(store, first) == ["all"]
    named = [(f"x{i}.{end}", data) for i, image in enumerate(images) for end, data in (("png", image), ("cls", b"cat"))]
    write_tar(tmp_path / "w" / "b.tar", named)
    second = ingest("w", config(f"webdataset:{tmp_path}/w"), store)
    assert classes(store, second) == ["cat"]
    assert second.metrics["rejected"] == 16, "those of the first file have no label now"

    write("folder", tmp_path, rows_of_classes(cat=16, dog=12))
    table = tmp_path / "images" / "metadata.csv"
    table.write_text("file_name,text\ncat/cat-000.png,a cat\n")
    before = ingest("f", config(f"folder:{tmp_path}/images"), store)
    table.write_text("file_name,text\ncat/cat-000.png,a dog\n")
    after = ingest("f", config(f"folder:{tmp_path}/images"), store)
    assert before.artifact != after.artifact
    assert {row["caption"] for row in rows_of(store, after)} == {None, "a dog"}


def test_touched_data_are_known_by_their_content(store: Store, tmp_path: Path) -> None:
    rows = rows_of_classes(cat=16, dog=12)
    for form in FORMS[:3]:
        source = write(form, tmp_path / form, rows)
        first = ingest(form, config(source, shard_rows=16), store)
        for path in (tmp_path / form).rglob("*"):
            os.utime(path, ns=(1, 1))
        assert ingest(form, config(source, shard_rows=16), store).artifact == first.artifact

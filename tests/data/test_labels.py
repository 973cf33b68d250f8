"""Classes, captions and splits are what the data says, in every form of source, and ingest says where it found them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from image_files import config as small_config
from image_files import quarantine, rows_of
from image_sources import Row, own_hub, png, rows_of_classes, write, write_parquet, write_tar

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.found import found
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.modalities.image.sources import open_source
from tokenloom.tasks.store.artifacts import Outcome, Store

pytestmark = pytest.mark.usefixtures("own_hub")
__all__ = ["own_hub"]
ROWS = rows_of_classes(cat=16, dog=12)


def config(source: str, **options: Any) -> DataConfig:
    return small_config(source, **{"shard_rows": 64, **options})


def put(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return f"folder:{folder}"


def in_splits(form: str, folder: Path, names: tuple[str, str], rows: list[Row] = ROWS) -> str:
    """Every third image of each class under the second name, the others under the first."""
    members = {f"{names[i % 3 == 0]}/{label}/{key}.png": data for i, (key, label, data) in enumerate(rows)}
    if form == "folder":
        return put(folder, members)
    write_tar(folder / "a.tar", list(members.items()))
    return f"webdataset:{folder}/a.tar"


def classes_of(store: Store, outcome: Outcome) -> list[str]:
    return list(store.record(outcome.artifact).notes["classes"])


@pytest.mark.parametrize("form", ["folder", "webdataset"])
@pytest.mark.parametrize("names", [("train", "val"), ("training", "Validation"), ("train", "test")])
def test_folders_named_like_splits_are_splits(store: Store, tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    source = in_splits(form, tmp_path / "data", names)
    outcome = ingest("pets", config(source), store)
    assert classes_of(store, outcome) == ["cat", "dog"]
    held_out = "test" if names[1] == "test" else "validation"
    for row in rows_of(store, outcome):
        top = row["key"].removeprefix("a.tar#").split("/")[0]
        assert (row["split"] == held_out) == (top == names[1]) or (held_out == "test" and row["split"] == "validation")
    assert outcome.metrics["validation"] > 0, "without a folder of its own it is held out of the training images"
    assert "splits by folder" in outcome.told
    everything = ingest("pets", config(source, splits="keyed"), store)
    assert classes_of(store, everything) == sorted(names, key=str)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_files_named_like_splits_are_splits(store: Store, tmp_path: Path, form: str) -> None:
    for name, part in (("train-00000", ROWS[::2]), ("test-00000", ROWS[1::2])):
        if form == "parquet":
            write_parquet(tmp_path / "d" / f"{name}.parquet", {"image": [d for *_, d in part], "label": [label for _, label, _ in part]})
        else:
            write_tar(
                tmp_path / "d" / f"{name}.tar", [(f"{k}.{end}", b) for k, n, d in part for end, b in (("png", d), ("cls", n.encode()))]
            )
    outcome = ingest("pets", config(f"{form}:{tmp_path}/d"), store)
    assert outcome.metrics["test"] == 14
    assert outcome.metrics["validation"] > 0
    assert all((row["split"] == "test") == row["key"].startswith("test") for row in rows_of(store, outcome))
    assert "splits by file" in outcome.told
    assert ingest("pets", config(f"{form}:{tmp_path}/d", splits="keyed"), store).metrics["test"] == 0


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_what_may_be_a_split_or_a_class_is_asked_for(store: Store, tmp_path: Path, form: str) -> None:
    members = {f"{top}/{i}.png": png(100 * j + i) for j, top in enumerate(("car", "plane", "train")) for i in range(8)}
    source = put(tmp_path / "data", members)
    if form == "webdataset":
        write_tar(tmp_path / "a.tar", list(members.items()))
        source = f"webdataset:{tmp_path}/a.tar"
    with pytest.raises(ConfigError, match=r"'train' is named like a split, and 'car' beside it is not.*data\.splits: keyed"):
        ingest("x", config(source), store)
    assert classes_of(store, ingest("x", config(source, splits="keyed"), store)) == ["car", "plane", "train"]
    with pytest.raises(ConfigError, match="there is test, val and no folder train"):
        open_source(config(put(tmp_path / "c", {"val/cat/a.png": png(1), "test/cat/a.png": png(2)})))


def test_labels_in_tar_files(store: Store, tmp_path: Path) -> None:
    def outcome(name: str, members: list[tuple[str, bytes]], **options: Any) -> Outcome:
        write_tar(tmp_path / f"{name}.tar", members)
        return ingest(name, config(f"webdataset:{tmp_path}/{name}.tar", **options), store)

    def described(key: str, label: str, data: bytes) -> list[tuple[str, bytes]]:
        return [(f"{key}.png", data), (f"{key}.json", json.dumps({"label": label, "text": f"a {label}", "shot": key}).encode())]

    by_json = outcome("json", [member for row in ROWS for member in described(*row)])
    assert classes_of(store, by_json) == ["cat", "dog"]
    assert {row["caption"] for row in rows_of(store, by_json)} == {"a cat", "a dog"}
    assert "labels from 'label' of .json, captions from 'text' of .json" in by_json.told
    named = outcome("json", [member for row in ROWS for member in described(*row)], label_column="shot", caption_column="none")
    assert len(classes_of(store, named)) == 28
    assert {row["caption"] for row in rows_of(store, named)} == {None}
    folders = outcome("folders", [(f"pets/{label}/{key}.png", data) for key, label, data in ROWS])
    assert classes_of(store, folders) == ["cat", "dog"]
    assert "classes by folder" in folders.told
    one = outcome("folders", [(f"pets/{label}/{key}.png", data) for key, label, data in ROWS], label_column="none")
    assert classes_of(store, one) == ["all"]
    odd = [
        (f"{key}.json", json.dumps({"label": [0] if i == 3 else 0.5 if i == 4 else label}).encode())
        for i, (key, label, _) in enumerate(ROWS)
    ]
    doubtful = outcome("odd", [*odd, *((f"{key}.png", data) for key, _, data in ROWS)])
    assert classes_of(store, doubtful) == ["cat", "dog"]
    assert set(quarantine(store, doubtful).values()) == {
        f"its label ('label' of .json) is neither a whole number nor a text: {value}" for value in ("[0]", "0.5")
    }


def test_archives_of_one_numbered_folder_each_have_one_class(store: Store, tmp_path: Path) -> None:
    for part in range(2):
        write_tar(tmp_path / f"{part:03d}.tar", [(f"{part:03d}/{key}.png", data) for key, _, data in ROWS[part::2]])
    assert classes_of(store, ingest("w", config(f"webdataset:{tmp_path}"), store)) == ["all"]


@pytest.mark.parametrize("form", ["parquet", pytest.param("hf", marks=pytest.mark.long)])
def test_labels_in_columns(store: Store, tmp_path: Path, form: str) -> None:
    images, labels = [data for _, _, data in ROWS], [label for _, label, _ in ROWS]

    def source(name: str, **columns: Any) -> str:
        write_parquet(tmp_path / name / "a.parquet", {"image": images, **columns})
        return f"{form}:{tmp_path}/{name}"

    for column in ("category", "class_name"):
        outcome = ingest("p", config(source(column, **{column: labels})), store)
        assert classes_of(store, outcome) == ["cat", "dog"]
        assert f"labels from column {column}" in outcome.told
    other = source("other", kind=labels, words=[f"a {label}" for label in labels])
    bare = ingest("p", config(other), store)
    assert "no label column" in bare.told
    named = ingest("p", config(other, label_column="kind", caption_column="words"), store)
    assert classes_of(store, named) == ["cat", "dog"]
    assert {row["caption"] for row in rows_of(store, named)} == {"a cat", "a dog"}
    with pytest.raises(ConfigError, match=r"data\.label_column='breed': .* has no such column; it has image, kind, words"):
        ingest("p", config(other, label_column="breed"), store)
    doubtful = {"floats": [0.0] * 27 + [None], "lists": [[0]] * 28, "pairs": [{"a": 1}] * 28}
    for name, values in doubtful.items():
        with pytest.raises(ConfigError, match=r"the label column 'label' holds .*: a label is a whole number or a text"):
            ingest("p", config(source(name, label=values)), store)
    with pytest.raises(ConfigError, match="the caption column 'text' holds list"):
        ingest("p", config(source("texts", label=labels, text=[["a", "b"]] * 28)), store)
    without = config(source("floats", label=doubtful["floats"]), label_column="none")
    assert classes_of(store, ingest("p", without, store)) == ["all"]


def test_class_names_of_one_parquet_file_are_those_of_all(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data"
    images, numbers = [data for _, _, data in ROWS], [int(label == "dog") for _, label, _ in ROWS]
    write_parquet(data / "a.parquet", {"image": images[::2], "label": numbers[::2]}, ["cat", "dog"])
    write_parquet(data / "b.parquet", {"image": images[1::2], "label": numbers[1::2]})
    assert classes_of(store, ingest("p", config(f"parquet:{data}"), store)) == ["cat", "dog"]
    write_parquet(data / "c.parquet", {"image": images[:2], "label": ["cat", "dog"]})
    assert classes_of(store, ingest("p", config(f"parquet:{data}"), store)) == ["cat", "dog"]
    write_parquet(data / "d.parquet", {"image": images[:2], "label": numbers[:2]}, ["eel", "fox"])
    with pytest.raises(ConfigError, match=r"b\.parquet holds numbers as 'label' without their class names"):
        open_source(config(f"parquet:{data}"))
    write_parquet(data / "d.parquet", {"image": images[:2], "category": numbers[:2]})
    with pytest.raises(ConfigError, match=r"the label column is not the same: a\.parquet has label, d\.parquet has category"):
        open_source(config(f"parquet:{data}"))
    for path in ("a", "d"):
        (data / f"{path}.parquet").unlink()
    with pytest.raises(ConfigError, match=r"texts in c\.parquet, and numbers without names in b\.parquet"):
        open_source(config(f"parquet:{data}"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_beside_the_images(store: Store, tmp_path: Path, form: str) -> None:
    files = {f"{key}.png": data for key, _, data in ROWS}
    rows = [{"file_name": f"{key}.png", "text": f"a {label}", "label": label} for key, label, _ in ROWS[:-1]] + [{"file_name": "gone.png"}]
    text = "\n".join(json.dumps(row) for row in rows)
    if form == "csv":
        text = "file_name,text,label\n" + "\n".join(",".join(row.get(k, "") for k in ("file_name", "text", "label")) for row in rows)
    source = put(tmp_path / "images", {**files, f"metadata.{form}": text.encode("utf-8-sig")})
    outcome = ingest("pets", config(source), store)
    assert classes_of(store, outcome) == ["cat", "dog"]
    assert {row["caption"] for row in rows_of(store, outcome)} == {"a cat", "a dog"}
    assert quarantine(store, outcome) == {f"{ROWS[-1][0]}.png": "no label in the table of the images"}
    assert "1 rows of files that are not there (first: gone.png)" in outcome.told
    (tmp_path / "images" / f"metadata.{form}").write_text("name\n1" if form == "csv" else '{"name": 1}')
    with pytest.raises(ConfigError, match="row 1 has no file_name"):
        ingest("pets", config(source), store)


def test_one_line_says_what_was_found(store: Store, tmp_path: Path) -> None:
    source = write("folder", tmp_path, ROWS)
    (tmp_path / "images/cat/cat-003.txt").write_text("a cat")
    (tmp_path / "images/cat/broken.png").write_bytes(b"?")
    outcome = ingest("pets", config(source), store)
    train, validation = outcome.metrics["train"], outcome.metrics["validation"]
    broken = tmp_path / "images/cat/broken.png"
    reason = "corrupt or unreadable: cannot identify image file <_io.BytesIO>"
    line = (
        f"28 images; 2 classes (cat 16, dog 12); 1 captions; train {train}, validation {validation}; "
        f"1 rejected (1 x {reason} (first: {broken})); classes by folder"
    )
    assert outcome.told == line
    assert found(store.record(outcome.artifact)) == line
    assert ingest("pets", config(source), store).told == line

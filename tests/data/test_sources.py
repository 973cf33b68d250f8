"""Sources of images: IDX, Parquet, WebDataset, the hub, folders with captions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import config, encoded, picture, quarantine, rows_of, two_classes
from image_sources import write_idx
from PIL import Image

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.modalities.image.decode import decode
from tokenloom.tasks.modalities.image.sources import open_source
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Store


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return two_classes(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(store: Store, tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6), dtype=np.uint8)
    labels = np.arange(30) % 3
    write_idx(tmp_path / "idx" / f"train-images-idx3-ubyte{suffix}", pixels)
    write_idx(tmp_path / "idx" / f"train-labels-idx1-ubyte{suffix}", labels)
    outcome = ingest("idx", config(f"idx:{tmp_path}/idx"), store)
    rows = rows_of(store, outcome)
    assert len(rows) == 30
    for row in rows:
        number = int(row["key"].removeprefix("train/"))
        assert np.array_equal(decode(row["image"])[1:7, 1:7, 0], pixels[number])
        assert row["label"] == labels[number]


def test_damaged_idx_files_are_named(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    write_idx(folder / "a-images-idx3-ubyte", np.zeros((5, 4, 4)))
    with pytest.raises(ConfigError, match="a-labels-idx1-ubyte"):
        ingest("idx", config(f"idx:{folder}"), store)
    write_idx(folder / "a-labels-idx1-ubyte", np.zeros(4))
    with pytest.raises(StepError, match="5 images, but 4 labels"):
        ingest("idx", config(f"idx:{folder}"), store)
    write_idx(folder / "a-labels-idx1-ubyte", np.zeros(5))
    raw = (folder / "a-images-idx3-ubyte").read_bytes()
    (folder / "a-images-idx3-ubyte").write_bytes(raw[:-7])
    with pytest.raises(StepError, match=r"a-images-idx3-ubyte: .*cut short"):
        ingest("idx", config(f"idx:{folder}"), store)


def samples(count: int = 24) -> list[tuple[bytes, int]]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [(encoded(Image.fromarray(image)), i % 3) for i, image in enumerate(noise)]


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_parquet_files_with_and_without_names(store: Store, tmp_path: Path, form: str) -> None:
    found = samples()
    column = [data if form == "bytes" else {"bytes": data, "path": None} for data, _ in found]
    labels = [label for _, label in found]
    labels[5], labels[6] = None, 99  # type: ignore[call-overload]
    table = pa.table({"image": column, "label": pa.array(labels, pa.int64()), "text": [f"text {i}" for i in range(24)]})
    metadata = b'{"info": {"features": {"label": {"names": ["ape", "bee", "cow"], "_type": "ClassLabel"}}}}'
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "p.parquet", row_group_size=7)
    outcome = ingest("p", config(f"parquet:{tmp_path}/*.parquet", channels=3), store)
    assert store.record(outcome.artifact).notes["classes"] == ["ape", "bee", "cow"]
    assert quarantine(store, outcome) == {"p.parquet#5": "label missing", "p.parquet#6": "label missing"}
    rows = {row["key"]: row for row in rows_of(store, outcome)}
    assert len(rows) == 22
    row = rows["p.parquet#0000010"]
    assert (row["label"], row["caption"]) == (1, "text 10")
    assert np.array_equal(decode(row["image"]), np.asarray(Image.open(io.BytesIO(found[10][0]))))


def test_parquet_without_images_is_a_config_error(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match="no column image"):
        ingest("p", config(f"parquet:{tmp_path}/*.parquet"), store)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ConfigError, match="not a whole Parquet file"):
        ingest("p", config(f"parquet:{tmp_path}/*.parquet"), store)


def write_tar(path: Path, add: Callable[[Callable[[str, bytes], None], tarfile.TarFile], None]) -> None:
    with tarfile.open(path, "w") as archive:

        def member(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        add(member, archive)


def test_webdataset_members_cannot_escape(store: Store, tmp_path: Path) -> None:
    def fill(member: Callable[[str, bytes], None], archive: tarfile.TarFile) -> None:
        for i, (data, label) in enumerate(samples()):
            member(f"part/{i:03d}.png", data)
            member(f"part/{i:03d}.cls", str(label).encode())
            member(f"part/{i:03d}.txt", b"a caption")
        for bad in ("../evil.png", "/etc/evil.png", "part/../../evil.png", "C:\\evil.png"):
            member(bad, samples(1)[0][0])
        link = tarfile.TarInfo("part/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        member("part/lonely.cls", b"1")

    write_tar(tmp_path / "w.tar", fill)
    outcome = ingest("w", config(f"webdataset:{tmp_path}/*.tar", channels=3), store)
    assert outcome.metrics["train"] + outcome.metrics["validation"] == 24
    table = pq.read_table(store.storage.local_path(f"{outcome.artifact.folder}/quarantine.parquet")).to_pylist()
    reasons = [row["reason"] for row in table]
    assert sum("unsafe member" in reason for reason in reasons) == 5
    assert sum("no image among .cls" in reason for reason in reasons) == 1
    row = next(row for row in rows_of(store, outcome) if row["key"] == "w.tar#part/004")
    assert (row["label"], row["caption"]) == (1, "a caption")


def test_a_cut_tar_file_is_a_config_error(store: Store, tmp_path: Path) -> None:
    write_tar(tmp_path / "w.tar", lambda member, _: [member(f"{i}.png", d) for i, (d, _) in enumerate(samples())] and None)
    (tmp_path / "w.tar").write_bytes((tmp_path / "w.tar").read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"w\.tar is not a whole"):
        ingest("w", config(f"webdataset:{tmp_path}/*.tar"), store)


def test_hub_data_sets(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ape", "bee", "cow"])})
    table = datasets.Dataset.from_dict(
        {"img": [{"bytes": d, "path": None} for d, _ in samples()], "label": [n for _, n in samples()]}, features
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    outcome = ingest("h", config("hf:someone/pictures", channels=3), store)
    assert store.record(outcome.artifact).notes["classes"] == ["ape", "bee", "cow"]
    assert len(rows_of(store, outcome)) == 24
    assert ingest("h", config("hf:someone/pictures", channels=3), store).status == "cached"


def test_a_hub_that_is_away_is_a_config_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", away)
    with pytest.raises(ConfigError, match=r"hf:someone/pictures: cannot be loaded \(ConnectionError: no network"):
        ingest("h", config("hf:someone/pictures"), store)


def test_captions_stand_beside_images(store: Store, images: Path) -> None:
    (images / "cat" / "3.txt").write_text("a cat\n")
    settings = config(f"folder:{images}")
    captions = {row["key"]: row["caption"] for row in rows_of(store, ingest("pets", settings, store))}
    assert captions["cat/3.png"] == "a cat"
    assert captions["cat/4.png"] is None
    (images / "cat" / "3.txt").write_text("a dog, really")
    assert scan(settings, store).new == 1


def test_images_without_class_folders_are_one_class(store: Store, tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "flat" / f"{i}.png", i)
    outcome = ingest("flat", config(f"folder:{tmp_path}/flat"), store)
    assert store.record(outcome.artifact).notes["classes"] == ["all"]


def test_progress_reaches_the_end(store: Store, images: Path) -> None:
    seen: list[tuple[int, int]] = []
    ingest("pets", config(f"folder:{images}"), store, lambda stage, done, total, numbers: seen.append((done, total)))
    assert seen[-1] == (20, 20)
    assert seen == sorted(seen)


def test_sources_list_classes_in_natural_order(tmp_path: Path) -> None:
    for name in ("10", "9", "1"):
        picture(tmp_path / "n" / name / "x.png")
    assert open_source(config(f"folder:{tmp_path}/n")).classes == ("1", "9", "10")

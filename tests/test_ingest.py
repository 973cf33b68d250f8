"""Sources, fitting, quarantine, splits, and appending: what is known keeps its shard."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.schema import DataConfig
from models.config import ConfigError
from tasks import ingest as module
from tasks import png
from tasks.artifacts import Outcome, Store
from tasks.errors import StepError
from tasks.images import fit
from tasks.ingest import ingest, scan
from tasks.loader import Loader, Rows
from tasks.matching import split_of
from tasks.sources import open_source


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", **options: Any) -> Path:
    """A file with a random image; ``size`` is (width, height)."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with 20 images in two classes."""
    for i in range(10):
        picture(tmp_path / "images" / "cat" / f"{i}.png", i)
        picture(tmp_path / "images" / "dog" / f"{i}.png", 100 + i)
    return tmp_path / "images"


def config(source: str, **options: Any) -> DataConfig:
    return DataConfig(**{"source": source, "size": 8, "fit": "pad", "validation": 0.3, "shard_rows": 4, **options})


def rows_of(store: Store, outcome: Outcome) -> list[dict[str, Any]]:
    notes = store.record(outcome.artifact).notes
    return [row | {"split": s["split"]} for s in notes["shards"] for row in pq.read_table(store.storage.local_path(s["path"])).to_pylist()]


def quarantine(store: Store, outcome: Outcome) -> dict[str, str]:
    table = pq.read_table(store.storage.local_path(f"{outcome.artifact.folder}/quarantine.parquet"))
    return {Path(row["source"]).name: row["reason"] for row in table.to_pylist()}


def paths_of(store: Store, outcome: Outcome) -> dict[str, bytes]:
    return {s["path"]: store.storage.read(s["path"]) for s in store.record(outcome.artifact).notes["shards"]}


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
        assert np.array_equal(png.decode(row["image"])[:, :, 0], np.asarray(Image.open(images / row["key"])))
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
    assert store.record(second.artifact).notes["classes"] == ["cat", "dog", "ant"], "known labels keep their numbers"
    assert {row["label"] for row in rows if row["key"].startswith("ant")} == {2}
    assert ingest("pets", settings, store).status == "cached"
    assert store.verify(first.artifact, deep=True) == []
    assert store.gc(dry_run=True) == []


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
    original = module._shard
    monkeypatch.setattr(module, "_shard", lambda *a: made.append(a) or original(*a))
    again = ingest("pets", settings, store)
    assert (again.status, again.artifact, len(made)) == ("ran", first.artifact, 1)
    assert paths_of(store, again) == before


def test_after_an_interruption_finished_shards_are_not_made_again(store: Store, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(f"folder:{images}")
    read: list[str] = []
    original = module.fit_item

    def interrupted(item: Any, *rest: Any) -> Any:
        if len(read) == 9:
            raise KeyboardInterrupt
        read.append(item.key)
        return original(item, *rest)

    monkeypatch.setattr(module, "fit_item", interrupted)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        ingest("pets", settings, store)
    assert store.records() == []
    again: list[str] = []
    monkeypatch.setattr(module, "fit_item", lambda item, *rest: again.append(item.key) or original(item, *rest))
    ingest("pets", settings, store)
    assert not set(again) & set(read[:8]), "two shards of four were finished"
    assert len(again) == 12
    assert not list((store.root / "staging").iterdir())


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


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


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


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


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
        assert np.array_equal(png.decode(row["image"])[1:7, 1:7, 0], pixels[number])
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
    assert np.array_equal(png.decode(row["image"]), np.asarray(Image.open(io.BytesIO(found[10][0]))))


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

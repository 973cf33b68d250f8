"""Sources elsewhere: buckets, addresses, manifests and blends give the same data as the same files here, and notice what changed."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from image_files import config, quarantine, rows_of
from image_sources import png, rows_of_classes, write

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data import ingest as module
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.making import units as making
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.sources import far
from tokenloom.tasks.sources.blocks import BlockFile
from tokenloom.tasks.sources.far import Far, file_system
from tokenloom.tasks.sources.patterns import matches
from tokenloom.tasks.store.artifacts import Outcome, Store

ROWS = rows_of_classes(cat=9, dog=9)


@pytest.fixture(autouse=True)
def _not_recent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was just written counts as old, where a test is not about that; listings are remembered for one test."""
    monkeypatch.setattr(far, "_RECENT", -1)
    monkeypatch.setenv("TOKENLOOM_NODE_ROOT", str(tmp_path / "node"))


def uploaded(folder: Path, base: str) -> None:
    """Copy a folder into a bucket."""
    target = Far.parse(base)
    pyarrow.fs.copy_files(str(folder), target.there, pyarrow.fs.LocalFileSystem(), file_system(target))


def signals(store: Store, outcome: Outcome) -> dict[str, tuple[bytes, str, str | None]]:
    """Image, class and caption by the last part of the key, whatever stands before it."""
    names = store.record(outcome.artifact).notes["classes"]
    return {row["key"].rpartition("/")[2]: (row["image"], names[row["label"]], row["caption"]) for row in rows_of(store, outcome)}


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_a_bucket_holds_what_a_folder_does(s3: str, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write(form, tmp_path / "data", ROWS)
    base = f"{s3}/{uuid.uuid4().hex}"
    uploaded(tmp_path / "data", base)
    away = here.replace(str(tmp_path / "data"), base)
    stores = [Store(str(tmp_path / name / "store"), tmp_path / name) for name in ("here", "away")]
    made = [ingest("pets", config(source), store) for source, store in zip((here, away), stores)]
    assert signals(stores[0], made[0]) == signals(stores[1], made[1])
    notes = [store.record(one.artifact).notes for store, one in zip(stores, made)]
    assert [shard["sha256"] for shard in notes[0]["shards"]] == [shard["sha256"] for shard in notes[1]["shards"]], "to the byte"
    assert ingest("pets", config(away), stores[1]).status == "cached"
    # One class less, one picture more, one replaced by another of the same size: each is noticed.
    monkeypatch.setattr(far, "_RECENT", 3_600_000_000_000)  # all of this may happen within one second, which is all that a bucket tells
    more = [*ROWS[:8], ("cat-008", "cat", png(777)), *rows_of_classes(eel=3)]
    write(form, tmp_path / "data", more)
    uploaded(tmp_path / "data" / ("images" if form == "folder" else ""), base + ("/images" if form == "folder" else ""))
    if form == "folder":
        for key, label, _ in ROWS[9:]:
            file_system(Far.parse(base)).delete_file(f"{Far.parse(base).there}/images/{label}/{key}.png")
    again = ingest("pets", config(away), stores[1])
    fresh = Store(str(tmp_path / "fresh/store"), tmp_path / "fresh")
    assert ingest("pets", config(away), fresh).artifact.fingerprint == again.artifact.fingerprint
    assert stores[1].record(again.artifact).notes["classes"] == ["cat", "eel"]
    assert again.metrics["train"] + again.metrics["validation"] == 12


def test_patterns_and_braces_of_a_bucket(s3: str, tmp_path: Path) -> None:
    base = f"{s3}/{uuid.uuid4().hex}"
    for part in range(3):
        write("webdataset", tmp_path / "data" / f"p{part % 2}", ROWS[part::3], f"{part:03d}")
    uploaded(tmp_path / "data", base)

    def names(pattern: str) -> list[str]:
        return [place.name for place in matches(f"{base}/{pattern}", "webdataset", (".tar",))]

    assert names("**/*.tar") == names("p*/*.tar") == ["000.tar", "002.tar", "001.tar"]
    assert names("p0/{000,002}.tar") == names("p0/00?.tar") == names("p0") == ["000.tar", "002.tar"]
    with pytest.raises(ConfigError, match=r"1 of its files are not there \(first: s3://.*003.tar"):
        names("p0/{000,003}.tar")
    with pytest.raises(ConfigError, match="no file matches"):
        names("p9/*.tar")
    with pytest.raises(ConfigError, match=r"no such file, and no folder with one that ends in \.tar"):
        names("p9")
    with pytest.raises(ConfigError, match="no such folder, or nothing in it"):
        module.modalities.kind("image").open_source(config(f"folder:{base}/nowhere"))
    for address in ("s3://", "s3:///pets"):
        with pytest.raises(ConfigError, match="is no address"):
            matches(address, "webdataset", (".tar",))


def test_a_source_that_changes_under_a_run_is_noticed(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.setattr(far, "_RECENT", 3_600_000_000_000)
    base = f"{s3}/{uuid.uuid4().hex}"
    write("folder", tmp_path / "data", ROWS)
    uploaded(tmp_path / "data" / "images", base)
    make, seen = making.make_shard, []

    def replaced(*arguments: object) -> dict[str, object]:
        if not seen:  # another picture of another size, after it was listed
            seen.append(1)
            with file_system(Far.parse(base)).open_output_stream(f"{Far.parse(base).there}/dog/dog-003.png") as file:
                file.write(png(4242) + b" ")
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(making, "make_shard", replaced)
    with pytest.raises(StepError, match=r"1 files of folder:.* changed while they were read \(first: dog/dog-003.png\)"):
        ingest("pets", config(f"folder:{base}"), store)
    first = ingest("pets", config(f"folder:{base}"), store)
    # The same second, the same size, another content: what was written when it was listed is known by its content.
    with file_system(Far.parse(base)).open_output_stream(f"{Far.parse(base).there}/dog/dog-003.png") as file:
        file.write(png(4243)[: len(png(4242))].ljust(len(png(4242))) + b" ")
    assert scan(config(f"folder:{base}"), store).new == 1
    assert scan(config(f"folder:{base}"), store).fingerprint != first.artifact.fingerprint


class Range(BaseHTTPRequestHandler):
    """Files of a folder, whole or in part, with a tag of their content."""

    folder = Path()
    gone = ()

    def do_GET(self) -> None:
        path = self.folder / self.path.partition("?")[0].lstrip("/")
        body = path.read_bytes() if path.is_file() else b""
        span = self.headers.get("Range")
        first, last = (int(x) for x in span.removeprefix("bytes=").split("-")) if span else (0, len(body) - 1)
        part = body[first : last + 1]
        self.send_response(404 if not path.is_file() else 206 if span else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(body)}"')
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server of what is in the folder ``served``."""
    Range.folder = tmp_path / "served"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Range)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_files_behind_an_address(address: str, tmp_path: Path, store: Store) -> None:
    for part in range(2):
        write("webdataset", tmp_path / "served", ROWS[part::2], f"{part}")
    write("parquet", tmp_path / "served", ROWS)
    tars = ingest("pets", config(f"webdataset:{address}/{{0..1}}.tar"), store)
    table = ingest("rows", config(f"parquet:{address}/rows/a.parquet"), store)
    assert {image for image, *_ in signals(store, tars).values()} == {row["image"] for row in rows_of(store, table)}
    assert ingest("pets", config(f"webdataset:{address}/{{0..1}}.tar"), store).status == "cached"
    write("webdataset", tmp_path / "served", [("cat-000", "cat", png(5)), *ROWS[2::2]], "0")
    assert scan(config(f"webdataset:{address}/{{0..1}}.tar"), store).reason.startswith("1 changed file")
    with pytest.raises(ConfigError, match="cannot be listed; give files, or a manifest"):
        scan(config(f"folder:{address}"), store)
    with pytest.raises(ConfigError, match="no file matches"):
        scan(config(f"parquet:{address}/rows/b.parquet"), store)


def manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        names = list(rows[0])
        path.write_text("\n".join([",".join(names), *(",".join(str(row.get(name) or "") for name in names) for row in rows)]))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("end", [".csv", ".jsonl"])
def test_a_manifest_names_files_anywhere(s3: str, address: str, tmp_path: Path, store: Store, end: str) -> None:
    base = f"{s3}/{uuid.uuid4().hex}"
    write("folder", tmp_path / "served", ROWS)
    uploaded(tmp_path / "served" / "images", base)
    wheres = (f"{base}/", f"{address}/images/", "images/")
    rows = [
        {
            "path": f"{wheres[i % 3]}{label}/{key}.png",
            "kind": label,
            "text": f"a {label}",
            "split": "val" if i % 4 == 0 else "train",
            "edges": f"images/{label}/{key}.png",
        }
        for i, (key, label, _) in enumerate(ROWS)
    ]
    rows += [{"path": f"{base}/cat/none.png", "kind": "cat", "text": "gone", "split": "train"}, rows[0] | {"kind": "dog"}]
    path = manifest(tmp_path / "served" / f"all{end}", rows)
    given = config(f"manifest:{path}", label_column="kind", columns={"control": "edges"})
    made = ingest("pets", given, store)
    data = {key: (image, label) for key, (image, label, _) in signals(store, made).items()}
    assert data == {f"{key}.png": (data[f"{key}.png"][0], label) for key, label, _ in ROWS}
    assert (made.metrics["train"], made.metrics["validation"], made.metrics["rejected"]) == (13, 5, 2)
    assert "splits from column split" in made.told
    assert "files from column path" in made.told
    reasons = quarantine(store, made)
    assert any("is not there" in reason for reason in reasons.values())
    assert any("stands in an earlier row too" in reason for reason in reasons.values())
    assert all(row["column:control"] is not None for row in rows_of(store, made))
    assert scan(given, store).reason == f"1 item that could not be read (against {made.artifact.id})"
    # A label in the manifest is part of the data.
    manifest(path, [row | {"kind": "fox"} if row["kind"] == "dog" else row for row in rows])
    assert store.record(ingest("pets", given, store).artifact).notes["classes"] == ["cat", "fox"]


def test_manifests_that_cannot_be_meant(tmp_path: Path, address: str, store: Store) -> None:
    rows: list[dict[str, object]] = [{"path": f"{key}.png", "label": label} for key, label, _ in ROWS]
    for problem, changed in {
        "no column path, file_name": [{"what": 1}],
        "which is no split": [*rows, {"path": "x.png", "split": "fold3"}],
        "has no row": [],
    }.items():
        with pytest.raises(ConfigError, match=problem):
            scan(config(f"manifest:{manifest(tmp_path / 'm.jsonl', changed)}"), store)
    (tmp_path / "m.jsonl").write_text('{"path": "a.png"\n')
    with pytest.raises(ConfigError, match=r"m.jsonl cannot be read as a table"):
        scan(config(f"manifest:{tmp_path}/m.jsonl"), store)
    inside = manifest(tmp_path / "served" / "m.jsonl", [{"path": str(tmp_path / "secret.png")}])
    source = module.modalities.kind("image").open_source(config(f"manifest:{address}/{inside.name}"))
    assert "lies on this machine, and the manifest elsewhere" in str(next(source.items(source.entries[0])).problem)


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_the_column_split_is_read(tmp_path: Path, store: Store, form: str) -> None:
    from image_sources import write_parquet

    parts = ["train", "train", "val"] * 6
    if form == "parquet":
        columns = {"image": [data for *_, data in ROWS], "label": [label for _, label, _ in ROWS], "split": parts}
        source = f"parquet:{write_parquet(tmp_path / 'a.parquet', columns)}"
    else:
        source = write("folder", tmp_path, ROWS)
        table = [{"file_name": f"{label}/{key}.png", "split": part} for (key, label, _), part in zip(ROWS, parts)]
        manifest(tmp_path / "images" / "metadata.jsonl", table)  # type: ignore[arg-type]
    made = ingest("pets", config(source), store)
    assert (made.metrics["train"], made.metrics["validation"]) == (12, 6)
    assert "split" in made.told
    keyed = ingest("pets", config(source, split_column="none"), store)
    assert keyed.artifact.fingerprint != made.artifact.fingerprint
    assert "split" not in keyed.told


def blended(first: str, second: str, weights: tuple[float, float] = (3.0, 1.0)) -> DataConfig:
    parts = {"photos": {"source": first, "weight": weights[0]}, "drawings": {"source": second, "weight": weights[1]}}
    return config("blend", blend=parts)


def test_a_blend_draws_by_its_weights(tmp_path: Path, store: Store) -> None:
    first = write("folder", tmp_path / "a", rows_of_classes(cat=12))
    second = write("parquet", tmp_path / "b", rows_of_classes(dog=40, cat=4))
    made = ingest("pets", blended(first, second), store)
    notes = store.record(made.artifact).notes
    assert notes["classes"] == ["cat", "dog"]
    assert "photos (weight 3): classes by folder" in made.told
    loader = Loader(Rows.of(notes, store.uri, "train"), store.cache)
    photos = notes["order"]["parts"]["train"][0]
    keys = [row["key"] for row in rows_of(store, made) if row["split"] == "train"]
    assert photos == sum(key.startswith("photos/") for key in keys)
    drawn = np.concatenate([loader.indices(0, step, 64) for step in range(64)])
    assert (drawn < photos).mean() == 0.75
    assert set(loader.items(np.unique(drawn[drawn < photos]))[1].tolist()) == {0}, "photos are cats"
    other = ingest("pets", blended(first, second, (1.0, 1.0)), store)
    assert other.artifact.fingerprint != made.artifact.fingerprint, "a weight is part of what a dataset is"
    assert {s["path"] for s in store.record(other.artifact).notes["shards"]} == {s["path"] for s in notes["shards"]}, (
        "no image is made anew"
    )
    assert ingest("pets", blended(first, second), store).artifact == made.artifact
    write("folder", tmp_path / "a", [("cat-900", "cat", png(9))])
    assert scan(blended(first, second), store).reason.startswith("1 new file")


def test_blends_that_cannot_be_meant() -> None:
    for message, given in {
        "goes with source: blend": {"source": "digits", "blend": {"a": {"source": "digits"}}},
        "at least two parts": {"source": "blend", "blend": {"a": {"source": "digits"}}},
        "with names of letters": {"source": "blend", "blend": {"a/b": {"source": "digits"}, "c": {"source": "digits"}}},
        "a thousandth of the weight": {"source": "blend", "blend": {"a": {"source": "digits", "weight": 1e-4}, "c": {"source": "digits"}}},
        "hf://OWNER/NAME": {"source": "digits", "hub": {"split": "train"}},
    }.items():
        with pytest.raises(ValueError, match=message):
            DataConfig(**{"size": 8, **given})  # type: ignore[arg-type]


def test_what_is_near_comes_in_one_request() -> None:
    import io

    data, asked = bytes(np.random.default_rng(0).integers(0, 256, 9 << 20, np.uint8)), []

    class Native(io.BytesIO):
        def read_at(self, size: int, offset: int) -> bytes:
            asked.append(offset)
            time.sleep(0.01)
            return data[offset : offset + size]

    def piece(at: int) -> bytes:
        file = BlockFile(("x", str(id(asked))), len(data), Native)
        file.seek(at)
        return file.read(1000)

    from concurrent.futures import ThreadPoolExecutor

    places = [0, 1000, (4 << 20) - 500, 5 << 20, (9 << 20) - 500] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(piece, places)) == [data[at : at + 1000] for at in places]
    assert len(asked) == 3, "each block once, whoever asks"


def _table(rows: list[dict[str, str]], separator: str = ",") -> str:
    return "\n".join([separator.join(rows[0]), *(separator.join(row.values()) for row in rows)])


PLAIN = [{"path": f"images/{label}/{key}.png", "label": label} for key, label, _ in ROWS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "\ufeff" + _table(PLAIN, ";").replace("\n", "\r\n")),
        ("m.tsv", _table(PLAIN, "\t")),
        ("m.csv", _table([row | {"path": row["path"].replace("/", "\\")} for row in PLAIN])),
        (
            "m.csv",
            "FOLDER".join(["path,label\nfile://", *[f"/{row['path']},{row['label']}\nfile://" for row in PLAIN]])[: -len("\nfile://")],
        ),
        ("m.json", json.dumps(PLAIN)),
        ("m.jsonl", "\n\n".join(json.dumps(row) for row in PLAIN)),
    ],
)
def test_manifests_as_people_write_them(tmp_path: Path, store: Store, name: str, text: str) -> None:
    write("folder", tmp_path, ROWS)
    (tmp_path / name).write_text(text.replace("FOLDER", str(tmp_path)), newline="")
    made = ingest("pets", config(f"manifest:{tmp_path / name}"), store)
    assert store.record(made.artifact).notes["classes"] == ["cat", "dog"]
    assert (len(rows_of(store, made)), made.metrics["rejected"]) == (18, 0)


def test_cells_of_tables_that_hold_an_image_or_do_not(tmp_path: Path, store: Store) -> None:
    from image_sources import write_parquet

    labels = [label for _, label, _ in ROWS]
    listed = write_parquet(tmp_path / "a.parquet", {"image": [list(data) for *_, data in ROWS], "label": labels})
    assert ingest("pets", config(f"parquet:{listed}"), store).metrics["rejected"] == 0
    paths = [{"bytes": None, "path": f"{key}.png"} for key, *_ in ROWS]
    named = write_parquet(tmp_path / "b.parquet", {"image": paths, "label": labels})
    with pytest.raises(ConfigError, match=r"holds the path of a file \(cat-000.png\) and no bytes: list the files in a manifest"):
        ingest("pets", config(f"parquet:{named}"), store)


def test_a_bucket_that_is_away_is_told_apart_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenloom.tasks.data import reading

    monkeypatch.setattr(reading, "WAITS", (0.0,))
    calls = []

    def away(what: str) -> bytes:
        calls.append(what)
        raise OSError(f"When reading: AWS Error {what}")

    for what, asked in (("NETWORK_CONNECTION: curlCode: 7", 2), ("ACCESS_DENIED: HTTP status 403", 1)):
        calls.clear()
        with pytest.raises(reading.ReadError, match="AWS Error"):
            reading.attempted(lambda what=what: away(what))
        assert len(calls) == asked
    with pytest.raises(OSError, match="image file is truncated"):  # Pillow's word for damage has no number either
        reading.attempted(lambda: (_ for _ in ()).throw(OSError("image file is truncated")))

"""The same verbs on local disk and on S3 (a server on loopback), leases on S3, and steps in an S3 store."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from tokenloom.configs.schema import DataConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.runtime.errors import ArtifactError, StepError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work
from tokenloom.tasks.store.leases import object_lease, object_lease_held
from tokenloom.tasks.store.lineage import collect
from tokenloom.tasks.store.storage import Storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "store"))
    return Storage(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


@pytest.fixture
def s3_store(s3: str, tmp_path: Path) -> Store:
    return Store(f"{s3}/{uuid.uuid4().hex}", tmp_path / "root")


def test_files_come_back_as_they_were_written(storage: Storage) -> None:
    storage.write("a/b/c.bin", b"one")
    storage.write("a/b/c.bin", b"three")
    assert storage.read("a/b/c.bin") == b"three"
    assert storage.size("a/b/c.bin") == 5
    assert storage.exists("a/b/c.bin")
    assert not storage.exists("a/b")
    assert storage.size("a/none") is None


def test_missing_file_is_file_not_found(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("no/such")
    with pytest.raises(FileNotFoundError):
        storage.download("no/such", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_listing_is_recursive_and_sorted(storage: Storage) -> None:
    for path in ("k/b/2", "k/a", "k/b/10", "other"):
        storage.write(path, b"x" * len(path))
    assert storage.list("k") == [("k/a", 3), ("k/b/10", 6), ("k/b/2", 5)]
    assert [path for path, _ in storage.list()] == ["k/a", "k/b/10", "k/b/2", "other"]
    assert storage.list("nothing") == []
    assert storage.folders("k") == ["b"]
    assert storage.folders("nothing") == []


def test_delete_takes_files_and_folders_and_what_is_not_there(storage: Storage) -> None:
    for path in ("d/x", "d/e/y", "keep"):
        storage.write(path, b"1")
    storage.delete("d/x")
    assert storage.list("d") == [("d/e/y", 1)]
    storage.delete("d")
    storage.delete("d")
    assert storage.list() == [("keep", 1)]
    with pytest.raises(StepError, match="whole store"):
        storage.delete(".")


def test_upload_and_download(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(os.urandom(9 << 20))
    storage.upload(source, "big/file")
    storage.download("big/file", target)
    assert target.read_bytes() == source.read_bytes()


def test_only_one_of_many_writers_wins(storage: Storage) -> None:
    wins: list[int] = []
    threads = [
        threading.Thread(target=lambda i=i: wins.append(i) if storage.write_if_absent("lock", str(i).encode()) else None) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert storage.read("lock") == str(wins[0]).encode()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "~/x", "a\\b", "a\0b"])
def test_paths_cannot_leave_the_store(storage: Storage, path: str) -> None:
    for verb in (storage.read, storage.exists, storage.list, storage.delete, storage.uri):
        with pytest.raises(StepError, match="relative to the store"):
            verb(path)


def test_missing_bucket_is_named_before_work(s3: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-bucket"):
        Store("s3://no-such-bucket/x", tmp_path)


def test_step_runs_once_and_is_found_by_another_machine(s3_store: Store, tmp_path: Path) -> None:
    step = StepSpec("ingest", 1, "dataset", "numbers", {"rows": 3})

    def body(work: Work) -> dict[str, int]:
        work.put("data.bin", b"payload", rows=3)
        work.mark("part", {"files": list(work.files.values())})
        assert work.done("part")
        return {"rows": 3}

    assert s3_store.execute(step, body).status == "ran"
    elsewhere = Store(s3_store.uri, tmp_path / "another-root")
    outcome = elsewhere.execute(step, body)
    assert (outcome.status, outcome.metrics) == ("cached", {"rows": 3})
    assert outcome.artifact.uri == f"{s3_store.uri}/dataset/numbers-{step.fingerprint}"
    assert [r.artifact for r in elsewhere.records()] == [outcome.artifact]
    folder = elsewhere.fetch(outcome.artifact)
    assert (folder / "data.bin").read_bytes() == b"payload"
    assert elsewhere.verify(outcome.artifact, deep=True) == []
    assert not s3_store.storage.list(".leases")


def test_node_cache_is_filled_only_with_the_recorded_bytes(s3_store: Store) -> None:
    step = StepSpec("ingest", 1, "dataset", "numbers", {})
    artifact = s3_store.execute(step, lambda work: {"rows": len(work.put("data.bin", b"payload"))}).artifact
    s3_store.storage.write(f"{step.folder}/data.bin", b"pAyload")
    with pytest.raises(ArtifactError, match="wrong hash"):
        s3_store.fetch(artifact)
    assert s3_store.storage.read(f".damaged/{step.folder}/data.bin") == b"pAyload"
    assert s3_store.find(step) is None, "a damaged file is put aside, so that the step makes it anew"
    with pytest.raises(ArtifactError, match=r"data\.bin"):
        s3_store.fetch(artifact)


def test_lease_waits_for_its_holder(s3: str) -> None:
    storage, order = Storage(f"{s3}/{uuid.uuid4().hex}"), []
    held = threading.Event()

    def first() -> None:
        with object_lease(storage, "lease"):
            held.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    assert object_lease_held(storage, "lease")
    with object_lease(storage, "lease"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert not storage.exists("lease")


def test_lease_is_renewed_while_the_work_lasts(s3: str) -> None:
    storage = Storage(f"{s3}/{uuid.uuid4().hex}")
    with object_lease(storage, "lease", beat=0.05):
        before = storage.read("lease")
        deadline = time.monotonic() + 30
        while storage.read("lease") == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert storage.read("lease") != before
        assert json.loads(storage.read("lease"))["id"] == json.loads(before)["id"]


@pytest.mark.parametrize(
    "dead",
    [{"host": "elsewhere", "pid": 1, "id": "x", "time": 0.0}, {"host": os.uname().nodename, "pid": 2**22 + 1, "id": "x", "time": 0.0}],
)
def test_dead_lease_is_taken_over(s3: str, dead: dict[str, object]) -> None:
    storage = Storage(f"{s3}/{uuid.uuid4().hex}")
    storage.write("lease", json.dumps(dead).encode())
    with object_lease(storage, "lease", beat=0.1, stale=0.5):
        assert json.loads(storage.read("lease"))["pid"] == os.getpid()
    assert not storage.exists("lease")


def test_gc_leaves_a_leased_folder_alone(s3_store: Store) -> None:
    step = StepSpec("ingest", 1, "dataset", "begun", {})
    s3_store.storage.write(f"{step.folder}/shards/half.parquet", b"1")
    with s3_store.lease(f"dataset-{step.fingerprint}"):
        assert collect(s3_store, dry_run=True) == []
    assert collect(s3_store, dry_run=False) == [f"{step.folder}/shards/half.parquet"]
    assert s3_store.storage.list() == []


def test_references_follow_a_store_that_was_moved(s3_store: Store, tmp_path: Path) -> None:
    made = s3_store.execute(StepSpec("ingest", 1, "dataset", "numbers", {}), lambda work: {"n": len(work.put("x", b"1"))}).artifact
    for path, _ in s3_store.storage.list():
        s3_store.storage.download(path, tmp_path / "copy" / path)
    moved = Store(str(tmp_path / "copy"), tmp_path / "root2")
    assert moved.resolve("numbers") == Artifact("dataset", "numbers", made.fingerprint, str(tmp_path / "copy" / made.folder))


def test_a_dataset_is_ingested_into_s3_and_read_through_the_node_cache(s3_store: Store, tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.encode(np.full((8, 8, 1), 10 * i, np.uint8)))
    config = DataConfig(source=f"folder:{tmp_path}/images", size=8, fit="pad", validation=0.3, shard_rows=4)
    outcome = ingest("pets", config, s3_store)
    assert ingest("pets", config, s3_store).status == "cached"
    rows = Rows.of(s3_store.record(outcome.artifact).notes, s3_store.uri, "train")
    loader = Loader(rows, tmp_path / "cache")
    values = {int(value) for value in loader.items(np.arange(len(loader)))[0][:, 0, 0, 0]}
    assert values <= {10 * i for i in range(20)}
    assert len(values) == outcome.metrics["train"]
    lost = rows.shards[0].path
    s3_store.storage.delete(lost)
    assert ingest("pets", config, s3_store).artifact == outcome.artifact
    assert s3_store.storage.size(lost) == rows.shards[0].size

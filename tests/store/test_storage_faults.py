"""Object storage that goes away and comes back, and bytes that are not what was written."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.faults.proxy import Proxy
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.runtime.errors import ArtifactError, StepError
from tokenloom.tasks.store import leases, retry
from tokenloom.tasks.store.artifacts import StepSpec, Store, Work
from tokenloom.tasks.store.inspection import inspect
from tokenloom.tasks.store.leases import object_lease
from tokenloom.tasks.store.lineage import collect
from tokenloom.tasks.store.records import sealed, unsealed
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.store.verification import read_verified
from tokenloom.tasks.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[str, Proxy]]:
    """Address of a bucket behind a proxy."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port()[1])
    with pytest.MonkeyPatch.context() as patch:
        address = f"http://127.0.0.1:{proxy.port}"
        given = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t", "AWS_REGION": "us-east-1"}
        for name, value in given.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="proxied")
        yield f"s3://proxied/{uuid.uuid4().hex}", proxy
    proxy.close()
    server.stop()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "root")


def test_a_request_waits_for_a_store_that_comes_back(proxied: tuple[str, Proxy], caplog: pytest.LogCaptureFixture) -> None:
    uri, proxy = proxied
    storage = Storage(uri)
    storage.write("kept", b"1")
    ended = threading.Event()

    def away() -> None:
        with proxy.cut():
            time.sleep(4.0)  # longer than the client library tries by itself
        ended.set()

    thread = threading.Thread(target=away)
    thread.start()
    time.sleep(0.1)
    assert storage.read("kept") == b"1"
    assert ended.is_set(), "it came back before"
    thread.join()
    assert proxy.cuts
    assert [r.levelno for r in caplog.records if r.name == "tokenloom.tasks.store.retry"] == [logging.WARNING]


def test_retrying_ends_with_the_path_and_is_used_up_once(proxied: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    uri, proxy = proxied
    storage = Storage(uri)
    storage.write("kept", b"1")
    monkeypatch.setenv(retry.LIMIT, "1.5")
    with proxy.cut():
        began = time.monotonic()
        with pytest.raises(StepError, match=f"cannot read {uri}/kept"):
            storage.read("kept")
        assert time.monotonic() - began >= 1.5
        pauses: list[float] = []
        with monkeypatch.context() as patch:
            patch.setattr(retry, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
            with pytest.raises(StepError, match="cannot write"):
                storage.write("new", b"2")
        assert not pauses, "a store that did not come back is not waited for again"
    storage.write("new", b"2")
    assert not retry._exhausted


@pytest.mark.parametrize("error", [PermissionError("denied"), FileNotFoundError("none"), OSError("AWS Error ACCESS_DENIED")])
def test_what_cannot_pass_is_not_waited_for(error: OSError) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        retry.retry(call, "read x", "x")
    assert calls == [1]


def test_a_lease_whose_answer_was_lost_is_recognised(proxied: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(proxied[0])
    real = Storage.write_if_absent

    def written_but_not_told(self: Storage, path: str, data: bytes) -> bool:
        real(self, path, data)
        return False

    monkeypatch.setattr(Storage, "write_if_absent", written_but_not_told)
    began = time.monotonic()
    with object_lease(storage, "lease", stale=60):
        assert time.monotonic() - began < 30
    assert not storage.exists("lease")


def test_a_renewal_whose_answer_was_lost_keeps_the_lease(
    proxied: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage, real, lies = Storage(proxied[0]), Storage.swap, []

    def swap(self: Storage, path: str, old: bytes, new: bytes) -> bool:
        done = real(self, path, old, new)
        lies.append(done)
        return False if len(lies) == 1 else done

    monkeypatch.setattr(Storage, "swap", swap)
    with object_lease(storage, "renewed", beat=0.05):
        deadline = time.monotonic() + 30
        while len(lies) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert lies[:3] == [True, True, True]
    assert "lost the lease" not in caplog.text
    assert not storage.exists("renewed")


def test_a_holder_on_another_machine_is_waited_for_until_its_lease_is_stale(
    proxied: tuple[str, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(proxied[0])
    monkeypatch.setattr(leases.socket, "gethostname", lambda: "here")
    storage.write("theirs", json.dumps({"host": "there", "pid": 1, "id": "x", "time": time.time()}).encode())
    began = time.monotonic()
    with object_lease(storage, "theirs", beat=0.1, stale=0.8):
        assert 0.8 <= time.monotonic() - began < 20


@pytest.mark.parametrize("at", range(0, 200, 7))
def test_every_byte_of_sealed_json_counts(at: int) -> None:
    raw = bytearray(sealed({"files": [{"path": "a/b", "size": 1, "sha256": "0" * 64}], "n": 1.5, "s": 2, "fingerprint": "0123456789ab"}))
    assert unsealed(bytes(raw))["n"] == 1.5
    for change in (0x01, 0x20, 0x80, 0x2A):
        raw[at % len(raw)] ^= change
        with pytest.raises(ValueError, match=r"hash|JSON|codec|delimiter|Expecting|Invalid|Extra|Unterminated"):
            unsealed(bytes(raw))
        raw[at % len(raw)] ^= change


def test_a_blank_in_a_record_counts(store: Store) -> None:
    step = StepSpec("ingest", 1, "dataset", "x", {"a": 1})
    store.execute(step, lambda work: {"n": len(work.put("data", b"1"))})
    path = f"{step.folder}/record.json"
    raw = store.storage.read(path)
    store.storage.write(path, raw.replace(b"\n ", b"\n\t", 1))
    with pytest.raises(ArtifactError, match="own hash is wrong"):
        store.record(store.artifact(step))


def test_damage_is_named_put_aside_and_made_anew(store: Store) -> None:
    step = StepSpec("ingest", 1, "dataset", "x", {})

    def body(work: Work) -> dict[str, int]:
        for part in ("a", "b"):
            if work.done(part) is None:
                made.append(part)
                work.mark(part, {"files": [work.put(f"{part}.bin", part.encode() * 100)]})
            else:
                work.add_file(f"{work.folder}/{part}.bin")
        return {}

    made: list[str] = []
    artifact = store.execute(step, body).artifact
    raw = bytearray(store.storage.read(f"{step.folder}/a.bin"))
    raw[7] ^= 1
    store.storage.write(f"{step.folder}/a.bin", bytes(raw))
    assert store.find(step), "the size is right"
    with pytest.raises(ArtifactError, match=r"x-\w+/a\.bin.*wrong hash.*run again"):
        store.fetch(artifact)
    assert store.storage.read(f".damaged/{step.folder}/a.bin") == bytes(raw)
    assert store.execute(step, body).status == "ran"
    assert made == ["a", "b", "a"]
    assert list(inspect(store, deep=True)) == []
    assert collect(store, dry_run=False) == [f".damaged/{step.folder}/a.bin"]


def test_a_file_that_arrives_damaged_once_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.storage.write("x", b"whole")
    real, answers = store.storage.read, iter([b"wHole"])
    monkeypatch.setattr(store.storage, "read", lambda path: next(answers, None) or real(path))
    from tokenloom.tasks.store.records import sha256_of

    assert read_verified(store.storage, "x", sha256_of(b"whole")) == b"whole"
    assert store.storage.exists("x")


def test_inspection_names_records_checkpoints_and_markers(store: Store, tmp_path: Path) -> None:
    import torch

    step = StepSpec("train_tokenizer", 1, "tokenizer", "t", {})
    kept = Checkpoints(store.storage, step.folder, step.fingerprint, tmp_path / "scratch")
    kept.save(1, {"w": torch.zeros(3)}, 1)
    kept.save(2, {"w": torch.ones(3)}, 1)
    Work(step, store.storage, tmp_path / "w").mark("part", {"files": []})
    assert list(inspect(store, deep=True)) == []
    for path in (f"{kept.path(2)}/state.safetensors", f"{kept.path(1)}/state.json", f"{step.folder}/markers/part.json"):
        raw = bytearray(store.storage.read(path))
        raw[-9] ^= 4
        store.storage.write(path, bytes(raw))
    assert kept.newest() == 0, "neither is used"
    named = {path for path, _ in inspect(store, deep=True)}
    assert named == {f"{kept.path(2)}/state.safetensors", f"{kept.path(1)}/state.json", f"{step.folder}/markers/part.json"}


def test_a_lost_image_shard_comes_back_to_its_place(store: Store, tmp_path: Path) -> None:
    import numpy as np

    from tokenloom.configs.schema import DataConfig

    for i in range(24):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png.encode(np.full((8, 8, 1), 10 * i, np.uint8)))
    config = DataConfig(source=f"folder:{tmp_path}/images", size=8, fit="pad", validation=0.3, shard_rows=4)
    made = ingest("pets", config, store).artifact
    before = store.record(made)
    items = store.storage.read(f"{made.folder}/items.parquet")
    assert len(before.notes["shards"]) > 3
    store.storage.delete(before.notes["shards"][0]["path"])
    assert ingest("pets", config, store).artifact == made
    assert store.record(made).notes["shards"] == before.notes["shards"], "the order of the rows is the order of training"
    assert store.storage.read(f"{made.folder}/items.parquet") == items

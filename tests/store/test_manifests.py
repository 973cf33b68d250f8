"""Records of many shards refer to a manifest of them: what is read is what was written, and a missing or damaged one is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store import manifests
from tokenloom.tasks.store.artifacts import RECORD, Record, StepSpec, Store, Work, sha256_of
from tokenloom.tasks.store.buckets import sizes_of
from tokenloom.tasks.store.inspection import inspect
from tokenloom.tasks.store.lineage import collect


def made(store: Store, shards: int) -> Record:
    def body(work: Work) -> dict[str, Any]:
        work.put("table.parquet", b"table")
        listed = []
        for i in range(shards):
            file = work.put(f"shards/{i:04d}", f"{i}".encode(), rows=i)
            listed.append({**file, "split": "train"} | ({"numbering": 0} if i % 2 else {}))
        work.notes |= {"shards": listed, "classes": ["a"]}
        return {}

    return store.record(store.execute(StepSpec("ingest", 1, "dataset", "many", {"n": shards}), body).artifact)


def test_a_manifest_holds_what_the_record_would(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = made(store, 20)
    assert plain.manifest is None
    assert json.loads(store.storage.read(f"{plain.artifact.folder}/{RECORD}"))["format"] == 2, "as versions before write it"
    monkeypatch.setattr(manifests, "LEAST", 16)
    other = Store(str(tmp_path / "other"), tmp_path / "other-root")
    record = made(other, 20)
    assert record.manifest is not None
    assert list(record.notes["shards"]) == list(plain.notes["shards"])
    own = f"{record.artifact.folder}/{manifests.NAME}"
    assert [file for file in record.files if file["path"] != own] == list(plain.files)
    assert len(other.storage.read(f"{record.artifact.folder}/{RECORD}")) < 2000
    assert (other.verify(record.artifact, deep=True), list(inspect(other, deep=True)), collect(other)) == ([], [], [])
    assert other.execute(StepSpec("ingest", 1, "dataset", "many", {"n": 20}), lambda _: {}).status == "cached"
    # A store that is moved names its own files.
    (tmp_path / "other").rename(tmp_path / "moved")
    moved = Store(str(tmp_path / "moved"), tmp_path / "moved-root")
    assert moved.verify(record.artifact, deep=True) == []


@pytest.mark.parametrize("damage", [None, b"PAR1"])
def test_a_lost_manifest_is_found(store: Store, monkeypatch: pytest.MonkeyPatch, damage: bytes | None) -> None:
    monkeypatch.setattr(manifests, "LEAST", 16)
    record = made(store, 20)
    path = f"{record.artifact.folder}/{manifests.NAME}"
    store.storage.delete(path)
    if damage is not None:
        store.storage.write(path, damage)
    with pytest.raises(ArtifactError, match=manifests.NAME):
        list(store.record(record.artifact).files)
    assert store.find(StepSpec("ingest", 1, "dataset", "many", {"n": 20})) is None
    assert any(manifests.NAME in what for _, what in inspect(store, deep=False))
    again = made(store, 20)
    assert store.verify(again.artifact, deep=True) == []


def test_shards_of_another_form_stay_in_the_record() -> None:
    shards = [{"path": f"{i}", "size": 1, "sha256": sha256_of(b"x"), "rows": 1} for i in range(manifests.LEAST)]
    assert manifests.split(shards, {"shards": shards}) is not None
    assert manifests.split(shards[1:], {"shards": shards}) is None
    assert manifests.split(shards, {"shards": [{"key": "x"}] * manifests.LEAST}) is None
    assert manifests.split(shards, {}) is None


def test_sizes_come_by_lists_of_folders() -> None:
    asked: list[Any] = []

    class Info:
        is_file = True

        def __init__(self, path: str) -> None:
            self.path, self.size = path, len(path)

    class Files:
        def get_file_info(self, what: Any) -> list[Info]:
            asked.append(what)
            return [Info(f"b/many/{i}") for i in range(9)] if not isinstance(what, list) else [Info(path) for path in what]

    paths = [*(f"b/many/{i}" for i in range(10)), "b/few/1"]
    assert sizes_of(Files(), paths) == [8] * 9 + [None, 7]
    assert len(asked) == 2

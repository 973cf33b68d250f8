"""What only local disk has: atomic names, permissions, files in the way of folders."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import StepSpec, Store
from tokenloom.tasks.store.storage import Storage, atomic


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("here/store").uri("a") == f"{tmp_path}/here/store/a"
    assert Storage(f"file://{tmp_path}/with%20space").local_path("a") == tmp_path / "with space" / "a"
    assert Storage("s3://bucket/some/prefix/").uri("a/b") == "s3://bucket/some/prefix/a/b"
    assert Storage("s3://bucket").uri() == "s3://bucket"


@pytest.mark.parametrize("uri", ["http://host/x", "s3:///x", "", "gs://b/x"])
def test_unsupported_address_is_a_config_error(uri: str) -> None:
    with pytest.raises(ConfigError, match="store"):
        Storage(uri)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/file", b"old")
    with contextlib.suppress(RuntimeError), atomic(tmp_path / "a" / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert storage.read("a/file") == b"old"
    assert os.listdir(tmp_path / "a") == ["file"]


def test_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/file", b"1")
    (tmp_path / "a" / ".file.0123abcd.tmp").write_bytes(b"half")
    assert storage.list() == [("a/file", 1)]


def test_a_file_in_the_stores_place_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        Store(str(tmp_path / "store"), tmp_path / "root")
    with pytest.raises(ConfigError, match="is a file, not a folder"):
        Store(str(tmp_path / "store" / "below"), tmp_path / "root")


def test_a_file_in_the_way_of_an_artifact_stops_before_the_work(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), tmp_path / "root")
    store.storage.write("dataset", b"a file where the folder should be")
    with pytest.raises((ConfigError, StepError), match="dataset"):
        store.execute(StepSpec("ingest", 1, "dataset", "x", {}), lambda work: {"n": len(work.put("x", b""))})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    store = Store(str(tmp_path / "store"), tmp_path / "root")
    with pytest.raises(ConfigError, match="permission"):
        store.execute(StepSpec("ingest", 1, "dataset", "x", {}), lambda work: pytest.fail("work began"))


def test_denied_writes_are_a_config_error_also_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "store"), tmp_path / "root")

    def denied(path: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.storage, "write", denied)
    with pytest.raises(ConfigError, match=r"Permission denied.*choose another --store"):
        store.execute(StepSpec("ingest", 1, "dataset", "x", {}), lambda work: pytest.fail("work began"))


def test_write_error_names_the_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a", b"1")
    with pytest.raises(StepError, match=r"cannot write .*a/b"):
        storage.write("a/b", b"2")

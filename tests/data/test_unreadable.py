"""What cannot be read now is tried again and never remembered: files, captions, folders, tar files, cells of a hub's data set."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_files import config, quarantine, rows_of, two_classes
from image_sources import FORMS, own_hub, rows_of_classes, write

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data import reading
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Store

pytestmark = pytest.mark.usefixtures("own_hub")
__all__ = ["own_hub"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)


def failing(monkeypatch: pytest.MonkeyPatch, bad: Callable[[str], bool], number: int, times: int | None = None) -> list[str]:
    """Reading what ``bad`` says of raises this error of the system (so many times); the names that were asked for."""
    asked: list[str] = []

    def attempt(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Any, *rest: Any, **named: Any) -> Any:
            if bad(str(path)) and (times is None or len(asked) < times):
                asked.append(str(path))
                raise OSError(number, os.strerror(number), str(path))
            return original(path, *rest, **named)

        return read

    monkeypatch.setattr(Path, "read_bytes", attempt(Path.read_bytes))
    monkeypatch.setattr("builtins.open", attempt(open))
    return asked


def test_an_image_that_could_not_be_read_comes_when_it_can(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_classes(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.endswith("cat/3.png"), errno.EACCES)
        first = ingest("pets", config(f"folder:{images}"), store)
        assert quarantine(store, first) == {"3.png": "cannot be read: Permission denied"}
        assert scan(config(f"folder:{images}"), store).reason.startswith("1 item that could not be read")
        again = ingest("pets", config(f"folder:{images}"), store)
        assert (again.artifact, again.metrics) == (first.artifact, first.metrics)
    second = ingest("pets", config(f"folder:{images}"), store)
    assert "cat/3.png" in {row["key"] for row in rows_of(store, second)}
    assert second.metrics["rejected"] == 0
    assert ingest("pets", config(f"folder:{images}"), store).status == "cached"
    fresh = Store(str(tmp_path / "fresh"), tmp_path / "fresh-root")
    assert ingest("pets", config(f"folder:{images}"), fresh).artifact.fingerprint == second.artifact.fingerprint


def test_errors_that_pass_are_waited_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_classes(tmp_path)
    asked = failing(monkeypatch, lambda path: path.endswith("cat/3.png"), errno.EIO, times=2)
    monkeypatch.setattr("tokenloom.tasks.modalities.image.folders._opens", lambda entry: True)
    outcome = ingest("pets", config(f"folder:{images}"), store)
    assert (outcome.metrics["rejected"], len(asked)) == (0, 2)


@pytest.mark.parametrize("name", ["cat/3.txt", "cat/3.control.png"])
def test_what_stands_beside_an_image_is_tried_again_too(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    images = two_classes(tmp_path)
    for i in range(10):
        (images / f"cat/{i}.control.png").write_bytes((images / f"cat/{i}.png").read_bytes())
    (images / "cat/3.txt").write_text("a cat")
    settings = config(f"folder:{images}", columns={"control": ".control.png"})
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.endswith(name), errno.EIO)
        assert list(quarantine(store, ingest("pets", settings, store))) == ["3.png"]
    outcome = ingest("pets", settings, store)
    assert {row["key"]: row["caption"] for row in rows_of(store, outcome)}["cat/3.png"] == "a cat"


@pytest.mark.parametrize("form", FORMS[1:])
def test_one_item_of_a_larger_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    source = write(form, tmp_path / "data", rows_of_classes(cat=16, dog=12))
    from tokenloom.tasks.modalities.image import archives, hub, tables

    module, name = {"webdataset": (archives, "content"), "parquet": (tables, "image_bytes"), "hf": (hub, "image_bytes")}[form]
    original = getattr(module, name)
    victim = rows_of_classes(cat=1)[0][2]

    def bad(*given: Any) -> bytes:
        data = original(*given)
        if data == victim:
            raise OSError(errno.EIO, "Input/output error")
        return bytes(data)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, bad)
        first = ingest("pets", config(source), store)
        assert list(quarantine(store, first).values()) == ["cannot be read: Input/output error"]
    kept = {shard["path"] for shard in store.record(first.artifact).notes["shards"]}
    second = ingest("pets", config(source), store)
    assert second.metrics["rejected"] == 0
    assert len(rows_of(store, second)) == 28
    assert kept < {shard["path"] for shard in store.record(second.artifact).notes["shards"]}, "only the item is read again"


def test_a_folder_that_cannot_be_read_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, scandir = two_classes(tmp_path), os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("cat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ConfigError, match=rf"the folder {images}/cat cannot be read \(Permission denied\)"):
        ingest("pets", config(f"folder:{images}"), store)
    assert not store.records()


def test_a_tar_file_that_cannot_be_read_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("webdataset", tmp_path, rows_of_classes(cat=16, dog=12))
    failing(monkeypatch, lambda path: path.endswith("a.tar"), errno.EACCES)
    with pytest.raises(ConfigError, match=r"a\.tar cannot be read: Permission denied"):
        ingest("pets", config(source), store)


def test_a_class_of_which_nothing_can_be_read_says_so(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = two_classes(tmp_path)
    failing(monkeypatch, lambda path: "/cat/" in path and path.endswith(".png"), errno.EACCES)
    with pytest.raises(StepError, match=r"class 'cat' .* \(10 x cannot be read: Permission denied \(first: .*cat/0.png\)"):
        ingest("pets", config(f"folder:{images}"), store)
    stop = config(f"folder:{images}", on_bad="stop")
    with pytest.raises(StepError, match=r"cat/0\.png: cannot be read: Permission denied"):
        ingest("pets", stop, store)


def test_old_errors_of_the_system_are_not_remembered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first version wrote them: a reason like any other."""
    images = two_classes(tmp_path)
    from tokenloom.tasks.making import shards
    from tokenloom.tasks.modalities.base import Rejected

    original = shards._fitted
    with monkeypatch.context() as patch:
        denied = Rejected("[Errno 13] Permission denied: '/images/cat/3.png'", "abc")
        patch.setattr(shards, "_fitted", lambda m, item, *rest: denied if item.key == "cat/3.png" else original(m, item, *rest))
        ingest("pets", config(f"folder:{images}"), store)
    assert ingest("pets", config(f"folder:{images}"), store).metrics["rejected"] == 0

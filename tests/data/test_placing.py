"""The order of rows is that of the data: two stores with one fingerprint give the same batches, whatever shards they came in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from extraction import InProcess, tokenizer
from image_files import config
from image_sources import rows_of_classes, write

from tokenloom.configs.schema import ClusterConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data import extract as extracting
from tokenloom.tasks.data.ingest import ingest, scan
from tokenloom.tasks.data.loader import Loader, Rows
from tokenloom.tasks.data.order import BALANCE, Stretch, indices
from tokenloom.tasks.data.placing import arranged
from tokenloom.tasks.store.artifacts import Artifact, Record, Store


def batches(rows: Rows, cache: Path, window: int = 0) -> list[bytes]:
    """What four steps take, to the byte."""
    loader, found = Loader(rows, cache), []
    for step in range(4):
        batch = loader.get(loader.indices(3, step, 7, window))
        found.append((batch.signal if batch.signal is not None else batch.tokens.data).numpy().tobytes())  # type: ignore[union-attr]
    return found


def tokens_of(store: Store, dataset: Artifact) -> Record:
    """The dataset's tokens, each image plain and mirrored."""
    step = extracting.plan_extract("pets", dataset, tokenizer(store, dataset), store, ("plain", "flip"))
    return store.record(extracting.extract(step, store, ClusterConfig()).artifact)


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_the_order_does_not_know_the_history(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extracting, "_encode", InProcess())
    first, more = rows_of_classes(ant=7, cat=9), rows_of_classes(ant=11, bee=6, cat=12)[7:]
    settings = {"shard_rows": 4, "validation": 0.3, "size": 16}
    grown, whole = (Store(str(tmp_path / name / "store"), tmp_path / name) for name in ("grown", "whole"))
    data = tmp_path / "data"
    source = write(form, data, first)
    ingest("pets", config(source, **settings), grown)
    more = [row for row in more if row[0] not in {key for key, *_ in first}]
    write(form, data, more, part="0")  # its name stands before that of the first file
    made = [ingest("pets", config(source, **settings), store) for store in (grown, whole)]
    assert made[0].artifact.fingerprint == made[1].artifact.fingerprint
    notes = [store.record(one.artifact).notes for store, one in zip((grown, whole), made)]
    assert notes[0]["order"]["files"]
    assert "files" not in notes[1]["order"], "at once, they lie in their order"
    for window in (0, 2):
        for split in ("train", "validation"):
            found = [batches(Rows.of(each, store.uri, split), store.cache, window) for each, store in zip(notes, (grown, whole))]
            assert found[0] == found[1]
    plain = [Loader(Rows.of(each, store.uri, "train", "validation"), store.cache) for each, store in zip(notes, (grown, whole))]
    every = np.arange(len(plain[0]))
    assert np.array_equal(plain[0].items(every)[0], plain[1].items(every)[0])
    assert np.array_equal(plain[0].items(every)[1], plain[0].labels())
    tokens = [tokens_of(store, one.artifact) for store, one in zip((grown, whole), made)]
    found = [batches(Rows.of(each.notes, store.uri, "train"), store.cache, 2) for each, store in zip(tokens, (grown, whole))]
    assert found[0] == found[1]
    assert tokens[0].notes["order"] == notes[0]["order"]
    lost = next(iter(notes[0]["order"]["files"].values()))["path"]
    grown.storage.delete(lost)
    assert "tables are damaged" in scan(config(source, **settings), grown).reason
    assert ingest("pets", config(source, **settings), grown).artifact == made[0].artifact
    assert grown.storage.exists(lost)


def test_one_rejected_image_moves_no_other(tmp_path: Path) -> None:
    stores = [Store(str(tmp_path / name / "store"), tmp_path / name) for name in ("a", "b")]
    rows = rows_of_classes(ant=9, cat=9)
    found = []
    for store in stores:
        source = write("folder", tmp_path / "data", rows)
        found.append(ingest("pets", config(source, shard_rows=4), store))
        (tmp_path / "data/images/ant/aaa.png").write_bytes(b"broken")
    assert found[0].artifact.fingerprint == found[1].artifact.fingerprint
    both = [batches(Rows.of(store.record(one.artifact).notes, store.uri, "train"), store.cache, 2) for store, one in zip(stores, found)]
    assert both[0] == both[1]


def test_a_store_of_the_version_before_keeps_its_order(store: Store, tmp_path: Path) -> None:
    made = ingest("pets", config(write("folder", tmp_path / "data", rows_of_classes(ant=9, cat=9))), store)
    notes = {name: value for name, value in store.record(made.artifact).notes.items() if name != "order"}
    rows = Rows.of(notes, store.uri, "train")
    assert rows.order is None
    assert Loader(rows, store.cache).indices(0, 0, 8).tolist() == indices(0, 0, 8, len(rows)).tolist()


def test_classes_take_turns_or_keys_follow_each_other() -> None:
    keys, labels = ["b2", "a1", "b1", "a2", "a3"], ["b", "a", "b", "a", "a"]
    assert [keys[i] for i in arranged(keys, labels, (("", True),))] == ["a1", "b1", "a2", "b2", "a3"]
    assert [keys[i] for i in arranged(keys, labels, (("", False),))] == ["a1", "a2", "a3", "b1", "b2"]
    named = ["y/a", "x/b", "y/c", "x/d"]
    assert [named[i] for i in arranged(named, [None] * 4, (("y", False), ("x", False)))] == ["y/a", "y/c", "x/b", "x/d"]


@pytest.mark.parametrize("window", [0, 2])
def test_stretches_have_their_shares_to_the_row(window: int) -> None:
    stretches = [Stretch(5, (3, 2), 1.0), Stretch(0, (), 5.0), Stretch(40, (10, 10, 10, 10), 3.0)]
    draws = np.concatenate([indices(1, step, 64, 45, window=window, stretches=stretches) for step in range(2 * BALANCE // 64)])
    for turn in (draws[:BALANCE], draws[BALANCE:]):
        assert (turn < 5).sum() == BALANCE // 4
    small = draws[draws < 5]
    assert all(sorted(small[i : i + 5]) == list(range(5)) for i in range(0, len(small) - 4, 5)), "each has epochs of its own"
    whole = indices(1, 0, 200, 45, window=window, stretches=stretches)
    assert np.array_equal(whole, np.concatenate([indices(1, step, 50, 45, window=window, stretches=stretches) for step in range(4)]))
    with pytest.raises(ConfigError):
        indices(0, 0, 0, 45, stretches=stretches)

"""Fingerprints, records, execution once, resuming after SIGKILL, and what gc and lineage say."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work
from tokenloom.tasks.store.lineage import collect, differences, explain, lineage_of


def plain_step(name: str = "numbers", **config: Any) -> StepSpec:
    return StepSpec("ingest", 1, "dataset", name, config or {"train": {"steps": 1500}})


def make(store: Store, step: StepSpec, data: bytes = b"data") -> Artifact:
    return store.execute(step, lambda work: {"size": work.put("data.bin", data)["size"]}).artifact


def test_fingerprint_covers_step_version_config_and_inputs_only() -> None:
    step = plain_step()
    same = [
        dataclasses.replace(step, name="another"),
        dataclasses.replace(step, notes={"workers": 3}),
        plain_step(train={"steps": 1500}),
        dataclasses.replace(step, config={"train": {"steps": 1500}}),
    ]
    source = Artifact("dataset", "a", "000000000000", "/x")
    other = [
        dataclasses.replace(step, version=2),
        dataclasses.replace(step, step="extract"),
        plain_step(train={"steps": 1501}),
        plain_step(train={"steps": 1500.0}),
        dataclasses.replace(step, inputs={"dataset": source}),
        dataclasses.replace(step, inputs={"tokenizer": source}),
        dataclasses.replace(step, inputs={"dataset": dataclasses.replace(source, fingerprint="1" * 12)}),
    ]
    assert {s.fingerprint for s in same} == {step.fingerprint}
    assert len({s.fingerprint for s in other} | {step.fingerprint}) == len(other) + 1
    moved = dataclasses.replace(step, inputs={"dataset": dataclasses.replace(source, uri="s3://elsewhere", name="b")})
    assert moved.fingerprint == other[4].fingerprint


def test_fingerprint_does_not_change_between_releases() -> None:
    assert StepSpec("ingest", 1, "dataset", "x", {"b": [1, 2.5, None], "a": "é"}).fingerprint == "84f9e59d7ac9"


@pytest.mark.parametrize("value", [object(), float("nan"), {1: 2}, Path("x"), lambda: 0])
def test_config_without_a_stable_form_raises(value: Any) -> None:
    with pytest.raises(ConfigError):
        _ = plain_step(value=value).fingerprint


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a" * 64])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        plain_step(name)


def test_second_execution_is_cached_with_its_metrics(store: Store) -> None:
    calls: list[int] = []

    def body(work: Work) -> dict[str, Any]:
        calls.append(1)
        work.put("data.bin", b"abc", rows=7)
        work.notes["classes"] = ["a"]
        return {"loss": 0.5}

    first, second = store.execute(plain_step(), body), store.execute(plain_step(), body)
    assert (first.status, second.status, len(calls)) == ("ran", "cached", 1)
    assert first.artifact == second.artifact
    assert first.metrics == second.metrics == {"loss": 0.5}
    record = store.record(first.artifact)
    assert record.files[0] == {"path": f"{plain_step().folder}/data.bin", "size": 3, "rows": 7, "sha256": record.files[0]["sha256"]}
    assert record.notes == {"classes": ["a"]}
    assert record.versions["torch"]


def test_same_recipe_under_another_name_is_shared(store: Store) -> None:
    made = make(store, plain_step("first"))
    outcome = store.execute(plain_step("second"), lambda work: pytest.fail("made twice"))
    assert (outcome.status, outcome.artifact) == ("cached", made)


def test_no_record_no_artifact(store: Store) -> None:
    def body(work: Work) -> dict[str, Any]:
        work.put("data.bin", b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.execute(plain_step(), body)
    assert store.find(plain_step()) is None
    assert store.records() == []
    with pytest.raises(ArtifactError, match="no record"):
        store.fetch(store.artifact(plain_step()))
    assert "half-written" in explain(store, plain_step())
    assert make(store, plain_step())


@pytest.mark.parametrize("damage", ["truncate", "remove", "record", "edit"])
def test_damage_is_seen_explained_and_repaired(store: Store, damage: str) -> None:
    artifact = make(store, plain_step(), b"data")
    folder = Path(artifact.uri)
    if damage == "truncate":
        (folder / "data.bin").write_bytes(b"da")
    elif damage == "remove":
        (folder / "data.bin").unlink()
    elif damage == "record":
        (folder / "record.json").write_text('{"half": ')
    else:
        record = json.loads((folder / "record.json").read_text())
        record["metrics"]["size"] = 1000
        (folder / "record.json").write_text(json.dumps(record))
    assert store.find(plain_step()) is None
    reason = explain(store, plain_step())
    assert ("data.bin" if damage in ("truncate", "remove") else "record.json") in reason
    assert store.verify(artifact)
    assert make(store, plain_step(), b"data") == artifact
    assert store.verify(artifact, deep=True) == []


def test_deep_verification_reads_every_byte(store: Store) -> None:
    artifact = make(store, plain_step(), b"data")
    Path(artifact.uri, "data.bin").write_bytes(b"dAta")
    assert store.verify(artifact) == []
    assert store.verify(artifact, deep=True) == [f"file {plain_step().folder}/data.bin has another hash than recorded"]


def test_registering_a_missing_file_fails(store: Store) -> None:
    with pytest.raises(ArtifactError, match="gone"):
        store.execute(plain_step(), lambda work: work.add_file("elsewhere/gone"))
    assert store.find(plain_step()) is None


def test_explain_names_paths_and_inputs_of_the_nearest(store: Store) -> None:
    data = make(store, plain_step("old"))
    new = make(store, plain_step("new", train={"steps": 1}))
    base = {"train": {"steps": 1500, "batch": 64}, "recipe": "var"}

    def step(config: dict[str, Any], source: Artifact, name: str = "run") -> StepSpec:
        return StepSpec("train_generator", 1, "generator", name, config, {"tokens": source})

    make(store, step({**base, "recipe": "raster", "train": {"steps": 9, "batch": 9}}, new))
    mine = make(store, step(base, data))
    make(store, step({**base, "train": {"steps": 2000, "batch": 64}, "extra": 1}, data, "stranger"))
    assert explain(store, step(base, data)) == ""
    changed = step({**base, "train": {"steps": 2000, "batch": 64}}, data)
    assert explain(store, changed) == f"train.steps: 1500 -> 2000 (against {mine.id})"
    assert explain(store, step(base, new)) == f"input tokens: {data.id} -> {new.id} (against {mine.id})"
    assert explain(store, StepSpec("evaluate", 1, "evaluation", "run", {})) == "no such artifact"


def test_differences_are_dotted_paths() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "gone": "x", "t": 1}
    new = {"a": {"b": 2, "c": [1, 3]}, "added": None, "t": True}
    assert list(differences(old, new)) == ["a.b: 1 -> 2", "a.c[1]: 2 -> 3", "added: new, None", "gone: x -> gone", "t: 1 -> True"]


def test_resolve_by_id_prefix_fingerprint_and_name(store: Store) -> None:
    first = make(store, plain_step("digits", a=1))
    second = make(store, plain_step("digits", a=2))
    third = make(store, StepSpec("train_tokenizer", 1, "tokenizer", "letters", {}))
    for reference in (first.id, first.id[:-2], first.fingerprint, first.fingerprint[:8], first.folder):
        assert store.resolve(reference) == first
    assert store.resolve("digits", "dataset") == second
    assert store.resolve("letters") == third
    for reference, kind in (("nothing", None), ("letters", "dataset"), ("digi", None)):
        with pytest.raises(ConfigError, match=r"candidates: .*digits-"):
            store.resolve(reference, kind)


def test_resolving_a_name_of_several_kinds_asks_which(store: Store) -> None:
    make(store, plain_step("run"))
    generator = make(store, StepSpec("train_generator", 1, "generator", "run", {}))
    with pytest.raises(ConfigError, match="several kinds"):
        store.resolve("run")
    assert store.resolve("run", "generator") == generator


def test_two_at_once_make_it_once(store: Store) -> None:
    calls: list[int] = []

    def body(work: Work) -> dict[str, Any]:
        calls.append(1)
        time.sleep(0.3)
        return {"size": work.put("x", b"1")["size"]}

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: store.execute(plain_step(), body), range(4)))
    assert len(calls) == 1
    assert sorted(o.status for o in outcomes) == ["cached", "cached", "cached", "ran"]


_WORKER = textwrap.dedent(
    """
    import sys, time, pathlib
    from tokenloom.tasks.store.artifacts import StepSpec, Store

    root, log, pause = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
    store = Store(str(root / "store"), root)

    def body(work):
        for shard in range(4):
            payload = work.done(f"part-{shard}")
            if payload is None:
                entry = work.put(f"shards/{shard}.bin", bytes([shard]) * 10)
                work.mark(f"part-{shard}", {"files": [entry]})
                with open(log, "a") as file:
                    file.write(f"{shard}\\n")
                time.sleep(pause)
            else:
                work.add_file(**payload["files"][0])
        return {"shards": 4}

    print(store.execute(StepSpec("ingest", 1, "dataset", "numbers", {}), body).status)
    """
)


def start_worker(root: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    here = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(root), str(log), str(pause)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_after_sigkill_only_the_missing_shards_are_made(root: Path) -> None:
    log = root / "log"
    worker = start_worker(root, log, 60)
    try:
        while not (log.exists() and log.read_text()):
            assert worker.poll() is None
            time.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert log.read_text() == "0\n"
    again = start_worker(root, log, 0)
    assert again.communicate(timeout=120)[0] == "ran\n"
    assert log.read_text() == "0\n1\n2\n3\n"
    third = start_worker(root, log, 0)
    assert third.communicate(timeout=120)[0] == "cached\n"


def test_two_processes_one_runs_and_the_other_finds_it(root: Path) -> None:
    workers = [start_worker(root, root / "log", 0.2) for _ in range(2)]
    said = sorted(worker.communicate(timeout=120)[0] for worker in workers)
    assert said == ["cached\n", "ran\n"]
    assert (root / "log").read_text() == "0\n1\n2\n3\n"


def test_lineage_goes_both_ways(store: Store) -> None:
    data = make(store, plain_step())
    tokenizer = make(store, StepSpec("train_tokenizer", 1, "tokenizer", "t", {}, {"dataset": data}))
    tokens = make(store, StepSpec("extract", 1, "tokens", "t", {}, {"dataset": data, "tokenizer": tokenizer}))
    generator = make(store, StepSpec("train_generator", 1, "generator", "g", {}, {"tokens": tokens, "tokenizer": tokenizer}))
    assert lineage_of(store, generator)["ancestors"] == [tokenizer, tokens, data]
    assert lineage_of(store, data)["descendants"] == [tokenizer, tokens, generator]
    assert lineage_of(store, tokens) == {"ancestors": [data, tokenizer], "descendants": [generator]}


def test_gc_keeps_what_any_record_refers_to(store: Store) -> None:
    first = make(store, plain_step("first", a=1))
    store.storage.write(f"{first.folder}/shards/shared.parquet", b"shared")
    store.storage.write(f"{first.folder}/shards/orphan.parquet", b"orphan")
    for step in ("step-0000100", "step-0000200"):
        store.storage.write(f"{first.folder}/checkpoints/{step}/state.json", b"{}")
    store.execute(plain_step("second", a=2), lambda work: {"size": work.add_file(f"{first.folder}/shards/shared.parquet")["size"]})
    begun = plain_step("begun", a=3)
    store.storage.write(f"{begun.folder}/shards/half.parquet", b"1")
    rubbish = [
        f"{begun.folder}/shards/half.parquet",
        f"{first.folder}/checkpoints/step-0000100/state.json",
        f"{first.folder}/shards/orphan.parquet",
    ]
    assert collect(store, dry_run=True) == rubbish
    assert all(store.storage.exists(path) for path in rubbish)
    with store.lease(f"dataset-{begun.fingerprint}"):
        assert collect(store, dry_run=True) == rubbish[1:]
    assert collect(store, dry_run=False) == rubbish
    assert collect(store, dry_run=True) == []
    assert store.storage.exists(f"{first.folder}/shards/shared.parquet")
    assert not Path(store.storage.uri(begun.folder)).exists()
    assert all(store.verify(r.artifact) == [] for r in store.records())


def test_gc_keeps_shards_in_a_folder_without_a_record_while_others_need_them(store: Store) -> None:
    first = make(store, plain_step("first", a=1))
    store.storage.write(f"{first.folder}/shards/shared.parquet", b"shared")
    store.execute(plain_step("second", a=2), lambda work: {"size": work.add_file(f"{first.folder}/shards/shared.parquet")["size"]})
    store.storage.delete(f"{first.folder}/record.json")
    assert collect(store, dry_run=False) == [f"{first.folder}/data.bin"]
    assert store.storage.exists(f"{first.folder}/shards/shared.parquet")

"""Tracking: one run an artifact, one warning when the server is away, each point delivered once."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from tokenloom.tasks.store.records import Artifact, StepSpec
from tokenloom.tasks.tracking.tracker import Tracker

STEP = StepSpec(
    "train_tokenizer",
    1,
    "tokenizer",
    "digits",
    {"recipe": "vq", "train": {"steps": 5, "optimizer": {"lr": 0.001}}, "long": "x" * 9000},
    {"dataset": Artifact("dataset", "digits", "0123456789ab", "/somewhere/dataset")},
)


def history(tracker: Tracker, name: str = "loss", step: StepSpec = STEP) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id(step.fingerprint), name)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "tokenloom.tasks.tracking.tracker" and r.levelno >= logging.WARNING]


def interrupted(tracker: Tracker, ids: list[str | None]) -> None:
    with tracker.track(STEP, "/store/tokenizer/digits-x") as run:
        ids.append(run.id)
        for step in (1, 2, 3):
            run.log({"loss": 1.0 / step}, step)
        raise KeyboardInterrupt


def test_one_run_an_artifact_with_parameters_lineage_pictures_and_no_double_points(root) -> None:
    first = Tracker(None, root, "digits")
    ids: list[str | None] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(first, ids)
    assert first.client.get_run(ids[0]).info.status == "KILLED"
    second = Tracker(None, root, "digits")  # another process goes on from step 2
    note = root / "note.txt"
    note.write_text("hello")
    with second.track(STEP, "/store/tokenizer/digits-x") as again:
        for step in (2, 3, 4):
            again.log({"loss": 1.0 / step}, step)
        again.picture("samples", b"png")
        again.file(note)
        again.tag({"gate": "open"})
    assert ids == [again.id]
    run_ = second.client.get_run(again.id)
    assert run_.info.status == "FINISHED"
    assert run_.data.params["train.optimizer.lr"] == "0.001"
    assert len(run_.data.params["long"]) == 6000
    assert run_.data.tags["tokenloom.fingerprint"] == STEP.fingerprint
    assert run_.data.tags["tokenloom.input.dataset"] == "dataset/digits-0123456789ab"
    assert run_.data.tags["gate"] == "open"
    assert run_.data.tags["mlflow.source.name"] == f"tokenloom run {STEP.name}"
    assert run_.data.tags["mlflow.user"]
    assert f"{STEP.kind}/{STEP.name}-{STEP.fingerprint}" in run_.data.tags["mlflow.note.content"]
    experiment = second.client.get_experiment(run_.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"  # else MLflow opens it as one of conversations
    assert [(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run_.inputs.dataset_inputs] == [
        ("dataset/digits", "0123456789ab", "dataset")
    ]
    assert history(second) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert [a.path for a in second.client.list_artifacts(again.id, "pictures")] == ["pictures/samples.png"]
    assert [a.path for a in second.client.list_artifacts(again.id, "files")] == ["files/note.txt"]
    assert not list((root / "scratch" / "tracking").rglob("*.png"))


def test_away_at_the_start_costs_one_warning_and_everything_arrives_once(root, caplog) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker(address, root, "digits")
    began = time.monotonic()
    assert tracker.sync() == 0
    with tracker.track(STEP, "/store/x") as run:
        for step in range(1, 6):
            run.log({"loss": float(step)}, step)
        run.picture("samples", b"png")
    assert run.id is None
    tracker.sync()
    with tracker.track(STEP, "/store/x") as run:
        run.log({"loss": 5.0}, 5)  # a resumed run repeats steps
        run.log({"loss": 6.0}, 6)
    assert len(warnings_of(caplog)) == 1
    assert address in warnings_of(caplog)[0]
    assert time.monotonic() - began < 60
    back = Tracker(None, root, "another run")  # which sends what the first one could not
    delivered = back.sync()
    assert back.client.get_experiment_by_name("digits") is not None
    assert back.client.get_experiment_by_name("another run") is None
    assert delivered >= 10
    assert history(back) == [(step, float(step)) for step in range(1, 7)]
    run_id = back.run_id(STEP.fingerprint)
    assert back.client.get_run(run_id).info.status == "FINISHED"
    assert [a.path for a in back.client.list_artifacts(run_id, "pictures")] == ["pictures/samples.png"]
    assert back.sync() == 0
    assert not list((root / "spool").glob("*"))


def test_breaking_in_the_middle_loses_and_doubles_nothing(root, caplog, monkeypatch) -> None:
    tracker = Tracker(None, root, "digits")
    with tracker.track(STEP, "/store/x") as run:
        run.log({"loss": 1.0}, 1)
        original = tracker.client.log_batch
        with monkeypatch.context() as broken:

            def sends_and_then_fails(*given, **named):  # the answer is lost, the point is not
                original(*given, **named)
                raise ConnectionError("connection reset")

            broken.setattr(tracker.client, "log_batch", sends_and_then_fails)
            run.log({"loss": 2.0}, 2)
        run.log({"loss": 3.0}, 3)
    assert len(warnings_of(caplog)) == 1
    assert "connection reset" in warnings_of(caplog)[0]
    assert history(tracker) == [(1, 1.0), (2, 2.0)]
    tracker.sync()
    assert history(tracker) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert tracker.client.get_run(run.id).info.status == "FINISHED"


def test_a_spool_cut_short_by_a_kill_is_delivered_up_to_the_cut(root) -> None:
    tracker = Tracker(f"http://127.0.0.1:{free_port()}", root, "digits")
    with tracker.track(STEP, "/store/x") as run:
        run.log({"loss": 1.0}, 1)
    events = next((root / "spool").glob("*/events.jsonl"))
    events.write_text(events.read_text() + '{"kind": "metr')
    back = Tracker(None, root, "digits")
    back.sync()
    assert history(back) == [(1, 1.0)]


def _first_use(root: str, number: int, failures: multiprocessing.Queue) -> None:
    try:
        tracker = Tracker(None, Path(root), "digits")
        with tracker.track(STEP, "/store/x") as run:
            run.log({"loss": float(number)}, number)
        failures.put(None if run.id else "away")
    except BaseException as error:
        failures.put(repr(error))


@pytest.mark.long
def test_two_processes_may_create_the_database_at_once(root) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    processes = [context.Process(target=_first_use, args=(str(root), n, failures)) for n in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [failures.get(timeout=5) for _ in processes] == [None, None]
    tracker = Tracker(None, root, "digits")
    assert sorted(history(tracker)) == [(1, 1.0), (2, 2.0)]
    found = tracker.client.search_runs([tracker.experiment_id()], f"tags.`tokenloom.fingerprint` = '{STEP.fingerprint}'")
    assert len(found) == 1


@pytest.mark.parametrize(
    ("words", "tries"),
    [
        ("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest", 2),
        ('duplicate key value violates unique constraint "dataset_pk"', 2),
        ("no such table: datasets", 1),
    ],
)
def test_a_dataset_that_another_process_inserts_meanwhile_is_found(root, caplog, monkeypatch, words: str, tries: int) -> None:
    tracker, asked = Tracker(None, root, "digits"), []
    original = tracker.client.log_inputs

    def second(run_id: str, datasets: list) -> None:
        asked.append(run_id)
        if len(asked) == 1:
            raise MlflowException(words)
        original(run_id, datasets=datasets)

    monkeypatch.setattr(tracker.client, "log_inputs", second)
    with tracker.track(STEP, "/store/x") as run:
        run.log({"loss": 1.0}, 1)
    assert len(asked) == tries
    assert (run.id is None, len(warnings_of(caplog))) == ((False, 0) if tries > 1 else (True, 1))
    if tries > 1:
        assert [i.dataset.digest for i in tracker.client.get_run(run.id).inputs.dataset_inputs] == ["0123456789ab"]


def test_addresses_are_shown_without_credentials(root) -> None:
    assert Tracker("https://me:secret@host/x", root, "a").shown == "https://host/x"


@pytest.fixture
def server(root: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """A tracking server on loopback."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root / 'server.db'}", "--artifacts-destination", str(root / "served")]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with open(root / "server.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            # Its first answer loads much, which on a busy machine takes longer than the tracker waits: that one is waited for here.
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=180).close()
                break
            assert process.poll() is None, (root / "server.log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.long
@pytest.mark.slow
def test_a_server_that_dies_in_the_middle(root, server, caplog) -> None:
    address, process = server
    tracker = Tracker(address, root, "digits")
    began = time.monotonic()
    with tracker.track(STEP, "/store/x") as run:
        run.log({"loss": 1.0}, 1)
        assert run.id, warnings_of(caplog)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        for step in (2, 3, 4):
            run.log({"loss": float(step)}, step)
        run.picture("samples", b"png")
    assert time.monotonic() - began < 60
    assert len(warnings_of(caplog)) == 1
    after = Tracker(f"sqlite:///{root / 'server.db'}", root, "digits")  # the server's own database, reached directly
    assert history(after) == [(1, 1.0)]
    after.client.get_experiment_by_name("digits")
    after.sync()
    assert history(after) == [(step, float(step)) for step in (1, 2, 3, 4)]


def test_work_that_is_over_has_its_own_times(root) -> None:
    tracker = Tracker(None, root, "digits")
    with tracker.track(STEP, "somewhere", (1000.0, 1011.5)):
        pass
    info = tracker.client.get_run(tracker.run_id(STEP.fingerprint)).info
    assert (info.start_time, info.end_time, info.status) == (1_000_000, 1_011_500, "FINISHED")

"""Training through Ray Train: the same numbers as without Ray, workers and drivers that die, errors that people can act on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import toy
from distributed_steps import TINY, cluster_of, dataset_of, tokenizer_step

from tokenloom.configs.schema import ClusterConfig, MethodConfig, TokenizerConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.tasks.runtime import cluster as clusters
from tokenloom.tasks.runtime.cluster import session
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.tracking.tracker import Tracker
from tokenloom.tasks.training.curves import read_curves
from tokenloom.tasks.training.distributed import make_job, plan_generator, plan_tokenizer, settings_of, train_model

HERE = Path(__file__).parents[1] / "support"


def without_ray(store: Store, step: StepSpec, workers: int, tmp_path: Path) -> str:
    """The same job in plain processes, in a folder of its own."""
    job, _ = make_job(step, store, cluster_of(workers))
    job = replace(job, folder=f"tokenizer/plain{workers}-{step.fingerprint}")
    toy.run_alone(workers, toy.to_file(job, tmp_path / f"plain{workers}.json"))
    return job.folder


def losses(store: Store, folder: str) -> np.ndarray:
    return np.array([row["loss"] for row in read_curves(store.storage, folder)])


@pytest.mark.ray
def test_three_workers_of_ray_have_the_losses_of_one(store, ray_session, tmp_path) -> None:
    step = tokenizer_step(store, precision="float64")
    seen: list[tuple[str, int, int]] = []
    outcome = train_model(step, store, cluster_of(3), None, lambda *given: seen.append(given[:3]))
    record = store.record(outcome.artifact)
    assert outcome.status == "ran"
    assert record.notes["world_size"] == 3
    assert record.notes["layout"]["tokenizer"] == step.fingerprint
    assert {f["path"].rpartition("/")[2] for f in record.files} >= {"weights.safetensors", "model.json"}
    assert seen[0] == ("train_tokenizer", 0, 50)
    assert seen[-1] == ("train_tokenizer", 50, 50)
    alone = losses(store, without_ray(store, step, 1, tmp_path))
    many = losses(store, outcome.artifact.folder)
    assert len(alone) == len(many) == 50
    assert store.storage.folders(f"{outcome.artifact.folder}/checkpoints") == ["step-0000050"]
    assert np.abs(many / alone - 1).max() <= 1e-6
    assert train_model(step, store, cluster_of(2)).status == "cached"
    # What needs Ray's dashboard, which is not there, would hold up the end of each training.
    with session(ClusterConfig(), tmp_path) as current:  # the one of all tests
        logs = list((current.root / "logs" / "ray" / "train").glob("*sys-controller*.log"))
    assert any("Started training worker group of size 3" in log.read_text() for log in logs)
    assert not any("PlacementGroupCleaner" in log.read_text() for log in logs)


@pytest.mark.long
@pytest.mark.ray
def test_a_killed_worker_costs_nothing(store, ray_session, tmp_path) -> None:
    step = tokenizer_step(store, steps=400, checkpoint_every=25)
    killed: list[int] = []

    def kill_one() -> None:
        while not store.storage.exists(f"{step.folder}/checkpoints/step-0000025/state.json"):
            time.sleep(0.02)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[-1].kill()
        killed.append(workers[-1].pid)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    outcome = train_model(step, store, cluster_of(2))
    assert killed, "training ended before a worker could be killed"
    assert outcome.metrics["resumed_from"] > 0
    plain = without_ray(store, step, 2, tmp_path)
    read = store.storage.read
    assert read(f"{outcome.artifact.folder}/weights.safetensors") == read(f"{plain}/weights.safetensors")


@pytest.mark.long
@pytest.mark.ray
def test_nan_is_one_clear_error_and_no_restart(store, ray_session) -> None:
    step = tokenizer_step(store, optimizer=OptimizerSettings(lr=1e6, warmup=0.0, clip=0.0, weight_decay=1.0))
    with pytest.raises(StepError, match=r"step \d+, phase 'main'.*not finite.*train\.optimizer\.lr"):
        train_model(step, store, cluster_of(2))
    assert store.find(step) is None
    assert max(row["step"] for row in read_curves(store.storage, step.folder)) < 10


DRIVER = """
import json, sys
sys.path.insert(0, {here!r})
import distributed_steps as t
from pathlib import Path
from tokenloom.tasks.training.distributed import train_model
from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.store.artifacts import Store
store = Store({store!r}, Path({root!r}))
step = t.tokenizer_step(store, steps=1500, checkpoint_every=1000)
try:
    outcome = train_model(step, store, t.cluster_of(2))
except Preempted as error:
    print(error)
    sys.exit(75)
except KeyboardInterrupt:
    sys.exit(130)
print(json.dumps(outcome.metrics))
"""


@pytest.mark.ray
@pytest.mark.long
def test_sigterm_and_ctrl_c_save_at_once_and_the_same_command_goes_on(store, root, tmp_path) -> None:
    step = tokenizer_step(store, steps=1500, checkpoint_every=1000)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(here=str(HERE), store=store.uri, root=str(root)))
    reached = 0
    for number, code in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while max((r["step"] for r in read_curves(store.storage, step.folder)), default=0) <= reached and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, number)
        assert process.wait(timeout=60) == code
        saved = sorted(store.storage.folders(f"{step.folder}/checkpoints"))
        assert int(saved[-1].rpartition("-")[2]) > reached
        reached = int(saved[-1].rpartition("-")[2])
        assert reached < 1500
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["resumed_from"] == reached
    plain = without_ray(store, step, 2, tmp_path)
    read = store.storage.read
    assert read(f"{step.folder}/weights.safetensors") == read(f"{plain}/weights.safetensors")


def test_hardware_never_changes_the_fingerprint_and_a_setting_always_does(store) -> None:
    base = tokenizer_step(store)
    assert tokenizer_step(store, checkpoint_every=7, validate_every=3, log_every=2, keep_every=5).fingerprint == base.fingerprint
    changed = [{"steps": 51}, {"batch": 32}, {"seed": 1}, {"precision": "float64"}, {"ema": 0.9}, {"optimizer": OptimizerSettings(lr=2e-3)}]
    fingerprints = {tokenizer_step(store, **change).fingerprint for change in changed}
    assert len(fingerprints | {base.fingerprint}) == len(changed) + 1
    assert plan_tokenizer(
        "other", TokenizerConfig(recipe="var_vq", args=TINY, train=TrainSettings(steps=50, batch=64)), dataset_of(store), store
    ).fingerprint == (base.fingerprint)


def test_plain_settings_round_trip() -> None:
    stepped = OptimizerSettings(schedule="drops", drops=((0.5, 0.1),), restarts=(0.25,), exempt=("vectors",))
    settings = TrainSettings(steps=3, optimizer=OptimizerSettings(betas=(0.8, 0.9)), phases={"discriminator": stepped})
    assert settings_of(json.loads(json.dumps(asdict(settings)))) == settings


def test_what_cannot_work_is_refused_before_work(store) -> None:
    dataset = dataset_of(store)
    train = TrainSettings(steps=5, batch=2)
    with pytest.raises(ConfigError, match="unknown tokenizer recipe 'nope'; there are"):
        plan_tokenizer("x", TokenizerConfig(recipe="nope", train=train), dataset, store)
    with pytest.raises(ConfigError, match=r"args\.cods"):
        plan_tokenizer("x", TokenizerConfig(recipe="var_vq", args={"cods": 3}, train=train), dataset, store)
    step = plan_tokenizer("x", TokenizerConfig(recipe="var_vq", args=TINY, train=train), dataset, store)
    with pytest.raises(ConfigError, match=r"train\.batch=2 is smaller than workers=3"):
        make_job(step, store, cluster_of(3))
    other = store.artifact(step)
    tokens = store.execute(StepSpec("extract", 1, "tokens", "x", {}, {"dataset": dataset, "tokenizer": other}), lambda work: {}).artifact
    stranger = Artifact("tokenizer", "y", "0" * 12, "")
    with pytest.raises(ConfigError, match="were made by tokenizer"):
        plan_generator("x", MethodConfig(recipe="var", train=train), tokens, stranger, store)


def test_sessions_are_lazy_and_nest(root, monkeypatch) -> None:
    monkeypatch.setattr(clusters, "_current", None)
    with session(ClusterConfig(), root) as outer:
        with session(ClusterConfig(extract_actors=1), root) as inner:
            assert inner is outer
        assert not outer.started, "nothing was asked of Ray, so nothing was started"
    assert clusters._current is None


def test_cpus_and_runtime_env(tmp_path: Path) -> None:
    assert clusters.cpus(ClusterConfig(execution=ExecutionSettings(workers=7))) >= 8
    assert clusters.runtime_env(ClusterConfig(), tmp_path) == {}
    shipped: Callable[..., Any] = clusters.runtime_env
    environment = shipped(ClusterConfig(ship_code=True), tmp_path)
    (package,) = map(Path, environment["py_modules"])
    assert package.name == "tokenloom"
    assert {folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()} == {"configs", "flows", "models", "tasks"}
    assert "env_vars" not in environment, "secrets never travel this way"


def test_a_node_has_its_own_root_folder(store, root, tmp_path, monkeypatch) -> None:
    """What a worker of a cluster is told holds no path of the driver's machine but the store's address."""
    away = ClusterConfig(address="auto", execution=ExecutionSettings(workers=1, device="cpu"))
    elsewhere = Store(store.uri, tmp_path / "driver")
    job, _ = make_job(tokenizer_step(elsewhere), elsewhere, away)
    assert job.root == ""
    assert "driver" not in repr(job).replace(store.uri, "")
    monkeypatch.setenv("TOKENLOOM_NODE_ROOT", "/node/own")
    assert clusters.node_root(job.root) == Path("/node/own")
    here, _ = make_job(tokenizer_step(store), store, cluster_of(1))
    assert clusters.node_root(here.root) == root
    monkeypatch.delenv("TOKENLOOM_NODE_ROOT")
    assert clusters.node_root("").name == f"tokenloom-{os.getuid()}"


def test_sharding_is_only_where_a_generator_has_several_workers(store) -> None:
    step = tokenizer_step(store)
    job, notes = make_job(step, store, cluster_of(2, sharding="fsdp"))
    assert notes["sharding"] == "ddp", "a tokenizer stays whole"
    assert job.execution.sharding == "fsdp"


@pytest.mark.long
@pytest.mark.ray
def test_training_is_tracked_once(store, root, ray_session) -> None:
    tracker = Tracker(None, root, "tiny")
    step = tokenizer_step(store, steps=12, checkpoint_every=5)
    outcome = train_model(step, store, cluster_of(1), tracker)
    run_id = tracker.run_id(step.fingerprint)
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "12"
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == [step.inputs["dataset"].fingerprint]
    history = tracker.client.get_metric_history(run_id, "loss")
    assert [m.step for m in history] == list(range(1, 13))
    assert run.data.tags["tokenloom.artifact"] == outcome.artifact.uri


def test_a_cluster_that_is_not_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def absent(**given: Any) -> Any:
        raise ConnectionError(f"Could not find any running Ray instance at {given['address']}.\nSee the docs")

    monkeypatch.setattr(ray, "init", absent)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(StepError, match=r"no Ray cluster at address=host:6379: Could not find any .* at host:6379\. Ray's logs"):
        clusters._start(ray, ClusterConfig(address="host:6379"), tmp_path)
    with pytest.raises(StepError, match="Ray did not start on this machine: Could not find"):
        clusters._start(ray, ClusterConfig(), tmp_path)


class Room:
    """Ray, as far as its resources go."""

    def __init__(self, **resources: float) -> None:
        self.cluster_resources = lambda: resources


def test_workers_without_room_are_refused_here_and_announced_on_a_cluster(caplog: pytest.LogCaptureFixture) -> None:
    here, there = (cluster_of(8).model_copy(update={"gpus_per_worker": 1.0, "address": address}) for address in ("local", "auto"))
    clusters.check_room(Room(CPU=8.0, GPU=8.0), here, 8)
    with pytest.raises(ConfigError, match=r"gpus_per_worker=1: 8 processes want 8 CPUs and 8 GPUs, this machine has 8 and 0"):
        clusters.check_room(Room(CPU=8.0), here, 8)
    assert not caplog.records
    clusters.check_room(Room(CPU=8.0, GPU=4.0), there, 8)
    assert "the cluster has 8 and 4 now: they wait for more nodes" in caplog.text

"""A cluster of several nodes that share nothing but an object store: the same artifacts as on local disk, preemption, a node that dies."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodes
import psutil
import pytest

from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.curves import read_curves

CHECKOUT = Path(__file__).parents[2]

RUN = """
name: several
data: {{source: digits, size: 8, fit: resize, validation: 0.25, limit: 80, shard_rows: 30}}
tokenizer:
  recipe: {recipe}
  args: {{scales: [1, 2], codes: 16, dim: 4, channels: 8, multipliers: [1, 2], patch: 2}}
  train: {{steps: {steps}, batch: 16, log_every: 1, validate_every: 1000, checkpoint_every: 1000}}
evaluate: {{metrics: [reconstruction]}}
"""

STEPS = 2000  # of a few milliseconds: enough to be stopped among them

#: A recipe that only the driver's machine has: nodes know it when the code is shipped.
RECIPE = '''"""A tokenizer that is not in this installation."""

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.tokenizers._small import SMALL, Small
from tokenloom.models.zoo.tokenizers.var_vq import var_vq


@register("only_here", kind="tokenizer", paper="-", tiny={})
def only_here(scales: tuple[int, ...] = (1, 2), codes: int = 16, dim: int = 4, small: Small = SMALL):
    """var_vq under another name."""
    return var_vq(scales=scales, codes=codes, dim=dim, small=small)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[nodes.Nodes]:
    """Three nodes of one CPU each, and a store on loopback whose keys are in their environment."""
    with nodes.bucket() as keys, nodes.cluster([1, 1, 1], keys) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        yield running


class Driver:
    """A checkout of its own from which ``tokenloom`` runs, with a root folder."""

    def __init__(self, folder: Path, cluster: nodes.Nodes | None, recipe: str, steps: int, workers: int = 2) -> None:
        self.folder, self.cluster = folder, cluster
        folder.mkdir()
        for package in ("configs", "flows", "models", "tasks"):
            shutil.copytree(CHECKOUT / package, folder / "code" / "tokenloom" / package, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "code" / "tokenloom" / "models" / "zoo" / "tokenizers" / "only_here.py").write_text(RECIPE)
        (folder / "run.yaml").write_text(RUN.format(recipe=recipe, steps=steps))
        where = {"address": cluster.address, "ship_code": True} if cluster else {"address": "local"}
        execution = {"workers": workers, "threads": 1, "device": "cpu"}
        (folder / "cluster.yaml").write_text(json.dumps({**where, "execution": execution, "extract_actors": 1}))

    def start(self, store: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tokenloom.flows.cli.main", "run", str(self.folder / "run.yaml"), "--no-prefect", "--json"]
        command += ["--root", str(self.folder / "root"), "--store", store, "--cluster", str(self.folder / "cluster.yaml")]
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "code"), "RAY_AUTH_MODE": "disabled"}
        with open(self.folder / "log.txt", "ab") as log:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=self.folder)

    def run(self, store: str) -> dict[str, Any]:
        """To the end; the JSON document that it prints."""
        process = self.start(store)
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, (self.folder / "log.txt").read_text()[-3000:]
        document: dict[str, Any] = json.loads(out)
        return document


def step_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(step for step in document["steps"] if step["name"] == name)
    return found


def wait_for(store: Store, driver: Driver, process: subprocess.Popen[str], step: int) -> str:
    """Until a training has logged this step; its folder."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, (driver.folder / "log.txt").read_text()[-3000:]
        for name in store.storage.folders("tokenizer"):
            if max((row["step"] for row in read_curves(store.storage, f"tokenizer/{name}")), default=0) >= step:
                return f"tokenizer/{name}"
        time.sleep(0.2)
    raise AssertionError("the training did not get that far")


@pytest.mark.ray
@pytest.mark.long
def test_preempted_on_three_nodes_it_ends_with_the_bits_of_local_disk(cluster, tmp_path) -> None:
    """SIGTERM saves at once and exits 75; the same command goes on; fingerprints and weights are those of one machine."""
    uri = "s3://store-bucket/nodes"
    store = Store(uri, tmp_path / "looking")
    driver = Driver(tmp_path / "driver", cluster, "only_here", steps=STEPS)
    process = driver.start(uri)
    folder = wait_for(store, driver, process, 1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(120) == 75, (driver.folder / "log.txt").read_text()[-3000:]
    saved = [int(name.rpartition("-")[2]) for name in store.storage.folders(f"{folder}/checkpoints")]
    assert len(saved) == 1
    assert 1 <= saved[0] < STEPS
    document = driver.run(uri)
    assert step_of(document, "ingest")["status"] == "cached"
    trained = step_of(document, "train_tokenizer")
    assert (trained["status"], store.record(store.resolve("several", "tokenizer")).metrics["resumed_from"]) == ("ran", saved[0])
    used = [node.name for node in cluster.nodes if (node.root / "own" / "cache" / "rows").is_dir()]
    assert len(used) >= 2, "two workers of nodes with one CPU are on two nodes, each with its own cache"
    assert not (tmp_path / "driver" / "root" / "ray").exists(), "nothing of Ray's is kept on the driver's disk"

    local = Driver(tmp_path / "local", None, "only_here", steps=STEPS)
    alone = local.run(str(tmp_path / "disk"))
    names = [(step["name"], step["fingerprint"]) for step in document["steps"]]
    assert names == [(step["name"], step["fingerprint"]) for step in alone["steps"]]
    weights = f"{folder}/weights.safetensors"
    assert Store(str(tmp_path / "disk"), tmp_path / "looking2").storage.read(weights) == store.storage.read(weights)


@pytest.mark.ray
@pytest.mark.long
def test_a_node_that_dies_costs_what_was_done_since_the_last_checkpoint(cluster, tmp_path) -> None:
    uri = "s3://store-bucket/dying"
    store = Store(uri, tmp_path / "looking")
    driver = Driver(tmp_path / "driver", cluster, "var_vq", steps=1500)
    run = driver.folder / "run.yaml"
    run.write_text(run.read_text().replace("checkpoint_every: 1000", "checkpoint_every: 50"))
    process = driver.start(uri)
    wait_for(store, driver, process, 51)
    busy = [node for node in cluster.nodes[1:] if _training(node)]  # not the head, without which there is no cluster
    busy[-1].kill()
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, (driver.folder / "log.txt").read_text()[-3000:]
    metrics = store.record(store.resolve("several", "tokenizer")).metrics
    assert metrics["resumed_from"] >= 50
    assert metrics["workers"] == 2
    assert step_of(json.loads(out), "train_tokenizer")["status"] == "ran"


def _training(node: nodes.Node) -> bool:
    names = []
    for process in node.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(process.cmdline()))
    return any("RayTrainWorker" in name for name in names)

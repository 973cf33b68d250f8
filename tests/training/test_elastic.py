"""Elastic training: the number of workers, and whether the state is cut over them, may change at every restart of one run.

``python test_elastic.py FOLDER`` is the worker side: the same run uninterrupted and in parts, in processes that are forked one after
another.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
import zoo
from safetensors.torch import load_file

from tokenloom.flows.guard import end_with_parent
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.tasks.data.loader import Loader, Rows, Shard
from tokenloom.tasks.data.tokens import write_tokens
from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training import train_loop
from tokenloom.tasks.training.curves import read_curves
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import launch

STEPS, BATCH = 12, 7  # an odd batch: shares differ between workers
#: Runs by name: (workers, sharding, steps until it is asked to stop; None: to the end).
RUNS: dict[str, list[tuple[int, str, int | None]]] = {
    "whole": [(1, "ddp", None)],
    "elastic": [(1, "ddp", 4), (2, "ddp", 5), (1, "ddp", None)],
    "sharded": [(2, "fsdp", 4), (1, "ddp", 2), (2, "ddp", 3), (2, "fsdp", None)],
}


def rows_of_noise(store: Store, layout: TokenLayout, split: str, rows: int) -> Rows:
    """One shard of random tokens."""
    random = np.random.default_rng(rows)
    ids = random.integers(layout.vocabulary, size=(rows, layout.length))
    given: dict[str, Any] = {"view_N": np.zeros(rows), "label_N": np.arange(rows) % zoo.CLASSES, "captions": [None] * rows}
    data = write_tokens(None, keys=[f"{split}{i}" for i in range(rows)], data=ids, layout=layout, lineage={}, **given)
    shard = Shard(f"tokens/noise/{split}.parquet", split, rows, hashlib.sha256(data).hexdigest(), len(data))
    store.storage.write(shard.path, data)
    return Rows("tokens", store.uri, (shard,), zoo.CLASSES, layout.to_dict())


def jobs(folder: Path) -> dict[str, TrainJob]:
    """The same recipe for each run, in an artifact folder of its own."""
    store = Store(str(folder / "store"), folder)
    spec = zoo.spec_of("var")
    layout = TokenLayout.from_dict(spec.given["layout"])
    rows = [rows_of_noise(store, layout, split, number) for split, number in (("train", 30), ("validation", BATCH + 1))]
    often = {"log_every": 1, "validate_every": 5, "checkpoint_every": 1000}
    optimizer = OptimizerSettings(lr=3e-3, clip=0.3)
    settings = TrainSettings(steps=STEPS, batch=BATCH, seed=3, precision="float64", ema=0.8, optimizer=optimizer, **often)
    plain = (spec.to_dict(), settings, ExecutionSettings(device="cpu", micro_batch=3), *rows, store.uri)
    return {name: TrainJob(*plain, f"generator/{name}-0", str(folder), None, name) for name in RUNS}


def session(path: str, sharding: str, count: int | None, log: str, rank: int, world: int) -> None:
    """One worker of one part of a run; notes which rows it was given and what it drew in training."""
    end_with_parent()
    torch.set_num_threads(1)
    job = toy.from_file(Path(path))
    job = replace(job, execution=replace(job.execution, workers=world, sharding=sharding))
    seen: list[Any] = []
    uniform, get, accumulate = Draws.uniform, Loader.get, train_loop._Run._accumulate
    asked = iter(range(1, 1000))

    def noted_uniform(self: Draws, *shape: int) -> torch.Tensor:
        values = uniform(self, *shape)
        if not self.stream.startswith("validation"):
            seen.append([self.step, f"uniform/{self.stream}", self.start, values.reshape(len(values), -1)[:, 0].tolist()])
        return values

    def noted_rows(self: train_loop._Run, batch: Any, phase: Any, start: int) -> list[str]:
        seen.append([self.step, "rows", start, self.loader.last])
        return accumulate(self, batch, phase, start)

    def noted_get(self: Any, idx: np.ndarray) -> Any:
        self.last = idx.tolist()
        return get(self, idx)

    Draws.uniform, Loader.get, train_loop._Run._accumulate = noted_uniform, noted_get, noted_rows  # type: ignore[method-assign,assignment]
    try:
        train_loop.train(job, rank, world, stop=(lambda: next(asked) == count) if count else None)
    except Preempted:
        assert count
    Path(f"{log}-{rank}.json").write_text(json.dumps(seen))


def worker(folder: Path) -> None:
    """All runs, part by part."""
    for name, job in jobs(folder).items():
        path = str(toy.to_file(job, folder / f"{name}.json"))
        for part, (world, sharding, count) in enumerate(RUNS[name]):
            given = (path, sharding, count, str(folder / f"{name}-{part}"))
            if world > 1:
                launch(world, session, *given)
            else:  # in a child too: this process must start no threads
                child = multiprocessing.get_context("fork").Process(target=session, args=(*given, 0, 1))
                child.start()
                child.join()
                assert child.exitcode == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs have ended."""
    folder = tmp_path_factory.mktemp("elastic")
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def seen(folder: Path, name: str) -> dict[tuple[int, str], list[list[float]]]:
    """What all workers saw: (step, what) to its values in the order of the global batch, one list a call."""
    calls: dict[tuple[int, str], list[list[float]]] = {}
    for part in range(len(RUNS[name])):
        parts: dict[tuple[int, str], dict[int, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
        for path in sorted(folder.glob(f"{name}-{part}-*.json")):
            for step, what, start, values in json.loads(path.read_text()):
                mine = parts[step, what]
                number = sum(start in call for call in mine.values())  # how often this piece has drawn so before
                mine[number][start] = values
        for key, found in parts.items():
            calls[key] = [[v for start in sorted(call) for v in call[start]] for _, call in sorted(found.items())]
    return calls


@pytest.mark.long
@pytest.mark.parametrize("name", ["elastic", "sharded"])
def test_parts_with_other_workers_are_the_same_run(name: str, folder: Path) -> None:
    store = Store(str(folder / "store"), folder)
    whole, parts = seen(folder, "whole"), seen(folder, name)
    assert {step for step, _ in whole} == set(range(STEPS))
    assert any(what.startswith("uniform") for _, what in whole)
    assert parts == whole, "every step has the same global batch and draws"
    curves = {n: read_curves(store.storage, f"generator/{n}-0") for n in ("whole", name)}
    assert [row["step"] for row in curves[name]] == list(range(1, STEPS + 1))
    for key in ("loss", "gradient_norm", "validation_loss"):
        ours, theirs = ([row[key] for row in curves[n] if key in row] for n in (name, "whole"))
        assert len(ours) == len(theirs) >= 3
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=key)
    saved = {n: store.storage.folders(f"generator/{n}-0/checkpoints") for n in ("whole", name)}
    assert len(saved[name]) == 2, "last and the one before"
    last = {n: f"generator/{n}-0/checkpoints/{saved[n][-1]}/state.safetensors" for n in saved}
    states = [load_file(store.storage.local_path(path)) for path in (*last.values(),)]
    models = [load_file(store.storage.local_path(f"generator/{n}-0/weights.safetensors")) for n in saved]
    for one, other in (states, models):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, atol=1e-9, rtol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]))

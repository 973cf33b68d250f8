"""Makes ``tests/fixtures/store``: a small store with every artifact of a run, and a generator that was interrupted.

It was made once, when identities became tags, and stays as it is: later versions must read it (``tests/store/test_fixture_store.py``).
Run again, ``python tests/support/make_fixture_store.py FOLDER``, it makes another one of the same kind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import ClusterConfig
from tokenloom.flows.planning import plan
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.training.distributed import make_job, plan_generator
from tokenloom.tasks.training.train_loop import train

FIXTURE = Path(__file__).parents[1] / "fixtures" / "store"
CLUSTER = ClusterConfig(execution=ExecutionSettings(workers=1))


def interrupted(store: Store, made: dict[str, Artifact]):
    """The step of the generator that stopped halfway: the run's own, with another seed."""
    config = load_run(str(FIXTURE / "run.yaml"), ["generator.train.seed=1"])
    return plan_generator(config.name, config.generator, made["tokens"], made["tokenizer"], store)


def roles(store: Store) -> dict[str, Artifact]:
    """The newest artifact of each kind."""
    return {record.artifact.kind: record.artifact for record in store.records()}


def main(folder: Path) -> None:
    """Run everything with Ray, Prefect left out, then the training that stops halfway."""
    import subprocess

    command = [
        "tokenloom",
        "run",
        str(FIXTURE / "run.yaml"),
        "--no-prefect",
        "--root",
        str(folder / "root"),
        "--store",
        str(folder / "store"),
    ]
    subprocess.run(command, check=True)
    store = Store(str(folder / "store"), folder / "root")
    job, _ = make_job(interrupted(store, roles(store)), store, CLUSTER)
    steps = iter(range(100))
    with pytest.raises(Preempted):
        train(job, stop=lambda: next(steps) >= 1)
    assert all(one.status == "cached" for one in plan(load_run(str(FIXTURE / "run.yaml")), store))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

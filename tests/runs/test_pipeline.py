"""The whole pipeline for real, as a person runs it: Prefect, Ray Train with two workers, Parquet, MLflow; then again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import document, tokenloom

from tokenloom.flows import planning
from tokenloom.tasks.store.artifacts import Store, sha256_of

#: The steps of a run whose tokenizer depends on no other.
STEPS = [name for name in planning.STEPS if name not in ("train_base", "train_density")]
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

#: Runs a command line in this process and says on stderr which of the heavy libraries it has loaded.
AND_SAY_WHAT_WAS_LOADED = """
import sys
from tokenloom.flows.cli.main import code_of
code = code_of(sys.argv[1:])
print("LOADED", *sorted({"prefect", "ray", "mlflow", "matplotlib", "sklearn", "datasets"} & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def ran(made: dict[str, Any]) -> list[str]:
    assert [row["name"] for row in made["steps"]] == STEPS
    return [row["name"] for row in made["steps"] if row["status"] == "ran"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A root in which ``smoke_var`` has run, and the document that the run printed."""
    root = tmp_path_factory.mktemp("pipeline")
    return root, document(tokenloom(root, "run", "smoke_var", "--json"))


def test_the_first_run_makes_everything(first: tuple[Path, dict[str, Any]]) -> None:
    root, made = first
    assert ran(made) == STEPS
    store = Store(str(root / "store"), root)
    for row in made["steps"]:
        record = store.record(store.resolve(row["artifact"].split("/")[-1], Path(row["uri"]).parent.name))
        assert store.verify(record.artifact, deep=True) == []
        assert record.artifact.fingerprint == row["fingerprint"]
    assert store.records("generator")[0].notes["world_size"] == 2
    assert made["model"].startswith("models:/smoke-var/")
    assert made["pictures"][0].endswith("samples.png")
    assert all(Path(path).is_file() for path in made["pictures"])


def test_prefect_shows_the_flow_its_tasks_and_its_pages(first: tuple[Path, dict[str, Any]]) -> None:
    database = sqlite3.connect(first[0] / "prefect" / "prefect.db")
    flows = database.execute("select name, state_type from flow_run").fetchall()
    assert [state for _, state in flows] == ["COMPLETED"]
    assert flows[0][0].startswith("smoke-var-")
    assert {name.removesuffix("-smoke-var") for (name,) in database.execute("select name from task_run")} == set(STEPS)
    pages = {key for (key,) in database.execute("select key from artifact where key is not null")}
    assert {"smoke-var-plan", "smoke-var-results", "smoke-var-samples"} <= pages


def test_mlflow_has_curves_and_a_version(first: tuple[Path, dict[str, Any]]) -> None:
    database = sqlite3.connect(first[0] / "mlflow.db")
    curves = dict(database.execute("select key, count(distinct step) from metrics group by key").fetchall())
    assert curves["loss"] >= 2
    assert database.execute("select count(*) from model_versions where name = 'smoke-var'").fetchone() == (1,)


def test_the_second_run_does_nothing_and_loads_nothing(first: tuple[Path, dict[str, Any]]) -> None:
    root, made = first
    done = tokenloom(root, "run", "smoke_var", "--json", start=("-c", AND_SAY_WHAT_WAS_LOADED))
    again = document(done)
    assert ran(again) == []
    assert "LOADED\n" in done.stderr
    assert [row["fingerprint"] for row in again["steps"]] == [row["fingerprint"] for row in made["steps"]]
    assert again["model"] == made["model"]
    assert again["pictures"] == made["pictures"]
    table = tokenloom(root, "run", "smoke_var")
    assert table.returncode == 0
    assert "samples.png" in table.stdout
    assert "tokenloom ui" in table.stdout


def test_a_step_that_the_run_does_not_have_is_refused_though_all_is_there(first: tuple[Path, dict[str, Any]]) -> None:
    done = tokenloom(first[0], "run", "smoke_var", "--only", "train_base")
    assert done.returncode == 2
    assert "run smoke-var has no step train_base" in done.stderr


def test_samples_of_the_registered_model(first: tuple[Path, dict[str, Any]]) -> None:
    import numpy as np

    root, made = first
    out = root / "samples.npz"
    done = tokenloom(root, "sample", made["model"], "--n", "6", "--classes", "0-2", "--seed", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    arrays = np.load(out)
    assert arrays["images"].shape == (6, 32, 32, 1)
    assert arrays["images"].dtype == np.uint8
    assert sorted(arrays["labels"]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.long
def test_a_lost_token_shard_is_made_again_alone(first: tuple[Path, dict[str, Any]]) -> None:
    root, _made = first
    store = Store(str(root / "store"), root)
    tokens = store.records("tokens")[0]
    shards = [store.storage.local_path(f["path"]) for f in tokens.files if f["path"].endswith(".parquet")]
    before = {path: (sha256_of(path), path.stat().st_mtime_ns) for path in shards}
    lost = shards[1]
    lost.unlink()
    plan = {row["name"]: row for row in document(tokenloom(root, "plan", "smoke_var", "--json"))["steps"]}
    assert lost.name in plan["extract"]["reason"]
    assert [name for name, row in plan.items() if row["status"] != "cached"] == ["extract"]
    assert ran(document(tokenloom(root, "run", "smoke_var", "--json", "--no-prefect"))) == ["extract"]
    assert {path: sha256_of(path) for path in shards} == {path: sha for path, (sha, _) in before.items()}
    assert [path for path in shards if path.stat().st_mtime_ns != before[path][1]] == [lost]


@pytest.mark.long
def test_a_changed_generator_runs_it_and_what_follows(first: tuple[Path, dict[str, Any]]) -> None:
    root, made = first
    changed = document(tokenloom(root, "run", "smoke_var", "--json", "--no-prefect", "--set", "generator.args.depth=1"))
    assert ran(changed) == ["train_generator", "evaluate", "register"]
    assert changed["steps"][0]["fingerprint"] == made["steps"][0]["fingerprint"]
    assert changed["model"] != made["model"]

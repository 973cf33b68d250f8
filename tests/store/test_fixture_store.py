"""A store that an earlier version made is read, planned as cached, sampled and continued, whatever was moved or renamed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from make_fixture_store import CLUSTER, FIXTURE, interrupted, roles

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import identity
from tokenloom.flows.planning import plan
from tokenloom.models.core import registry
from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import canonical, from_dict
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.records import StepSpec
from tokenloom.tasks.training.distributed import make_job, settings_of
from tokenloom.tasks.training.train_loop import train


@pytest.fixture
def store(tmp_path: Path) -> Store:
    shutil.copytree(FIXTURE / "store", tmp_path / "store")
    return Store(str(tmp_path / "store"), tmp_path / "root")


def _recipes_of_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipes give what the records hold: defaults of recipes may have changed since."""
    for kind, artifact in roles(store).items():
        if kind in ("tokenizer", "generator"):
            noted = store.record(artifact).config
            recipe = registry.get(noted["recipe"])
            then = from_dict(noted["config"])
            changed = registry.Recipe(**{**vars(recipe), "function": lambda then=then: then})
            monkeypatch.setitem(registry._RECIPES, recipe.name, changed)
            monkeypatch.setattr(registry.Recipe, "config", lambda self, args=None, changes=None: self.function())


def test_every_record_is_read_and_whole(store: Store) -> None:
    records = store.records()
    assert {r.artifact.kind for r in records} == {
        "dataset", "tokenizer", "tokens", "generator", "features", "evaluation", "registration"
    }  # fmt: skip
    for record in records:
        assert store.verify(record.artifact, deep=True) == []


def test_trainings_are_found_by_their_resolved_configs(store: Store) -> None:
    for kind in ("tokenizer", "generator"):
        record = store.record(roles(store)[kind])
        config = {
            "recipe": record.config["recipe"],
            "config": canonical(from_dict(record.config["config"])),
            "train": identity(settings_of(record.notes["train"])) if "train" in record.notes else record.config["train"],
        }
        step = StepSpec(record.step, record.version, kind, "another-name", config, record.inputs)
        assert step.fingerprint == record.artifact.fingerprint
        assert store.find(step) == record.artifact


def test_the_whole_run_is_planned_as_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _recipes_of_then(store, monkeypatch)
    planned = plan(load_run(str(FIXTURE / "run.yaml")), store)
    assert [(one.name, one.status) for one in planned] == [(one.name, "cached") for one in planned]
    assert len(planned) == 7


def test_it_is_sampled_from(store: Store, tmp_path: Path) -> None:
    drawn = []
    for i, seed in enumerate((0, 0, 1)):
        sample_model(roles(store)["generator"].id, store, None, total=4, seed=seed, out=tmp_path / f"{i}.npz")
        drawn.append(np.load(tmp_path / f"{i}.npz")["images"])
    assert drawn[0].shape == (4, 16, 16, 1)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_a_changed_default_does_not_alter_a_saved_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.fetch(roles(store)["generator"])
    before, _ = load_model(folder)
    monkeypatch.setattr(registry.Recipe, "config", lambda *_: pytest.fail("the recipe was asked"))
    after, spec = load_model(folder)
    assert spec.config().to_dict() == json.loads((folder / "model.json").read_text())["resolved"]
    assert all((a == b).all() for a, b in zip(before.state_dict().values(), after.state_dict().values()))


def test_training_goes_on_from_its_checkpoint(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _recipes_of_then(store, monkeypatch)
    step = interrupted(store, roles(store))
    assert store.find(step) is None
    job, _ = make_job(step, store, CLUSTER)
    metrics = train(job)
    assert metrics["resumed_from"] == 2
    assert metrics["steps"] == 4

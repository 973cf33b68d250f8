"""A scheduled retrain, seen over a source that grows: new data alone is tokenized, training starts from the champion, and the
alias moves only if the gate holds; unchanged data does nothing and says so.

The flow's own function is called, as a schedule would; Ray's part (training, tokenizing, drawing) is done in this process.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from databases import empty_database
from inline_runs import here_fixture, ran, scheduled  # noqa: F401
from toy_runs import complete, images, run, source_fixture, statuses  # noqa: F401

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import RunConfig, identity
from tokenloom.flows import planning
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.checks import check_warm_start
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.lineage import lineage_of
from tokenloom.tasks.tracking.registry import tags_of
from tokenloom.tasks.training import warm_start

ALL = ["ingest", "train_tokenizer", "extract", "features", "train_generator", "evaluate", "register"]


def retrain(folder: Path, *sets: str) -> RunConfig:
    """A run as one would schedule it: the tokenizer of the first time, the champion's weights."""
    return run(
        folder,
        "tokenizer.pinned=true",
        "generator.warm_start=champion",
        "evaluate={samples: 10, neighbours: 1, components: 2, metrics: [fd, precision_recall]}",
        *sets,
    )


def aliases(store: Store) -> dict[str, int]:
    with sqlite3.connect(store.root / "mlflow.db") as database:
        return dict(database.execute("select alias, version from registered_model_aliases where name = 'toy'").fetchall())


def test_what_cannot_work_is_refused_before_any_step(source: Path, here: Store) -> None:
    with pytest.raises(ConfigError, match=r"register\.gate"):
        scheduled(retrain(source, "register.gate=nll"), here)
    assert here.records("dataset") == []


@pytest.mark.slow
def test_a_source_that_grows(source: Path, here: Store) -> None:
    config = retrain(source)
    first, said = scheduled(config, here)
    assert ran(first) == ALL
    assert "models:/toy/1 is champion: the first champion" in said
    assert aliases(here) == {"champion": 1, "challenger": 1}
    generator = here.records("generator")[0]
    assert "warm_start" not in generator.inputs  # there was no champion yet
    plan = json.loads(here.storage.read(f"{generator.artifact.folder}/plan.json"))
    assert plan["sample"] == identity(config.sample)  # so that it is sampled while it trains as the run samples

    again, said = scheduled(config, here)
    assert ran(again) == []
    assert said == "nothing to do: the source holds nothing new, and every artifact is there"
    assert [row["fingerprint"] for row in again.values()] == [row["fingerprint"] for row in first.values()]

    old = {shard["path"] for shard in here.records("tokens")[0].notes["shards"]}
    written = {path: here.storage.local_path(path).stat().st_mtime_ns for path in old}
    images(source, 40, 60)
    third, said = scheduled(config, here)
    assert ran(third) == ["ingest", "extract", "features", "train_generator", "evaluate", "register"]
    assert third["train_tokenizer"]["fingerprint"] == first["train_tokenizer"]["fingerprint"]
    tokens = here.records("tokens")[1]
    shards = {shard["path"] for shard in tokens.notes["shards"]}
    assert old < shards
    assert tokens.metrics["reused"] == len(old)
    assert tokens.metrics["encoded"] == len(shards - old) > 0
    assert {path: here.storage.local_path(path).stat().st_mtime_ns for path in old} == written
    # From the champion's weights, on record as an input: it shapes the fingerprint and shows in the lineage.
    later = here.records("generator")[1]
    assert later.inputs["warm_start"] == generator.artifact
    assert generator.artifact in lineage_of(here, later.artifact)["ancestors"]
    # Judged against the champion, which is evaluated again under the new protocol (the data has changed).
    evaluations = here.records("evaluation")
    theirs, ours = (next(r for r in evaluations[1:] if r.inputs["generator"] == g.artifact) for g in (generator, later))
    assert theirs.notes["protocol"] == ours.notes["protocol"]
    better = ours.metrics["fd_classifier"] <= theirs.metrics["fd_classifier"]
    assert aliases(here) == {"challenger": 2, "champion": 2 if better else 1}
    assert f"models:/toy/2 {'is champion' if better else 'stays challenger'}: fd_classifier is" in said

    after, said = scheduled(config, here)
    assert ran(after) == []
    assert said.startswith("nothing to do")


@pytest.mark.slow
@pytest.mark.parametrize("holds", [pytest.param(True, marks=pytest.mark.long), False])
def test_the_alias_moves_only_if_the_gate_holds(holds: bool, source: Path, here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, by a metric whose value is set: the challenger's is better or worse than the champion's."""
    from tokenloom.tasks.evaluation import evaluate

    config = retrain(source)
    body = evaluate._judge

    def judged(step: Any, *rest: Any) -> dict[str, Any]:
        numbers = body(step, *rest)
        return {**numbers, "fd_classifier": (1.0 if holds else 3.0) if "warm_start" in inputs_of(step) else 2.0}

    def inputs_of(step: Any) -> dict[str, Artifact]:
        return here.record(step.inputs["generator"]).inputs

    monkeypatch.setattr(evaluate, "_judge", judged)
    scheduled(config, here)
    images(source, 40, 50)
    _, said = scheduled(config, here)
    assert aliases(here) == {"challenger": 2, "champion": 2 if holds else 1}
    assert ("is champion: fd_classifier is 1, the champion's is 2" if holds else "stays challenger: fd_classifier is 3") in said
    # The next one starts from whoever is champion now.
    images(source, 50, 56)
    scheduled(config, here)
    generators = here.records("generator")
    assert generators[2].inputs["warm_start"] == generators[1 if holds else 0].artifact


@pytest.mark.slow
def test_training_starts_from_the_weights_it_was_given(source: Path, here: Store) -> None:
    """With a learning rate of nothing, the result is the start."""
    import torch

    scheduled(retrain(source), here)
    champion = here.records("generator")[0].artifact
    still = retrain(source, f"generator.warm_start={champion.id}", "generator.train.optimizer.lr=1e-30", "generator.train.seed=7")
    rows, _ = scheduled(still, here)
    made = here.resolve(rows["train_generator"]["artifact"], "generator")
    ours, theirs = (load_model(here.storage.local_path(a.folder))[0].state_dict() for a in (made, champion))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fresh = load_model(here.storage.local_path(champion.folder))[1].build().state_dict()
    assert any(not torch.equal(fresh[name], theirs[name]) for name in theirs)


# --- the plan -------------------------------------------------------------------------------------------------


def test_a_named_warm_start_is_an_input_that_shapes_the_fingerprint(source: Path, store: Store) -> None:
    made = complete(run(source), store)
    warm = run(source, "tokenizer.pinned=true", f"generator.warm_start={made['generator'].id}")
    plan = {one.name: one for one in planning.plan(warm, store)}
    assert [name for name, one in plan.items() if one.status != "cached"] == ["train_generator", "evaluate", "register"]
    step = plan["train_generator"].spec
    assert step is not None
    assert step.inputs["warm_start"] == made["generator"]
    assert step.fingerprint != made["generator"].fingerprint
    assert "input warm_start: none -> " in plan["train_generator"].reason


def test_a_champion_is_decided_once_for_the_same_tokens(source: Path, store: Store) -> None:
    config = run(source, "tokenizer.pinned=true", "generator.warm_start=champion")
    made = complete(config, store)
    assert warm_start.champion(store, "toy", None) is None  # registered, but never promoted
    record = store.record(made["registration"])
    store.storage.write(f"{record.artifact.folder}/record.json", replace(record, metrics={"promoted": True}).to_bytes())
    assert warm_start.champion(store, "toy", None) == made["generator"]
    assert warm_start.champion(store, "other", None) is None
    assert statuses(config, store) == dict.fromkeys(ALL, "cached")  # although there is a champion now
    changed = run(source, "tokenizer.pinned=true", "generator.warm_start=champion", "generator.train.steps=3")
    planned = next(one for one in planning.plan(changed, store) if one.name == "train_generator")
    assert planned.spec is not None
    assert planned.spec.inputs["warm_start"] == made["generator"]


def test_what_a_warm_start_needs_is_said_before_work(source: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"generator\.warm_start='champion'.*tokenizer\.pinned: true"):
        load_run("smoke_var", ["generator.warm_start=champion"])
    made = complete(run(source), store)
    with pytest.raises(ConfigError, match=r"generator\.warm_start: .*nobody"):
        planning.plan(run(source, "tokenizer.pinned=true", "generator.warm_start=nobody"), store)
    other = complete(run(source, "name=other", "tokenizer.train.seed=3"), store)
    assert other["tokenizer"] != made["tokenizer"]
    with pytest.raises(ConfigError, match=r"generator\.warm_start: other-.* knows the codes of tokenizer other-.*this run has toy-"):
        planning.plan(run(source, "tokenizer.pinned=true", f"generator.warm_start={other['generator'].id}"), store)


def test_a_champion_whose_generator_is_gone_is_said_by_name(source: Path, store: Store) -> None:
    made = complete(run(source), store)
    registered = SimpleNamespace(config={"name": "toy"}, metrics={"promoted": True}, inputs={"generator": made["generator"]})
    records = store.records
    with mock.patch.object(store, "records", lambda kind: [registered] if kind == "registration" else records(kind)):
        assert warm_start.champion(store, "toy", None) == made["generator"]
        store.storage.delete(f"{made['generator'].folder}/record.json")
        with pytest.raises(ConfigError, match=r"generator\.warm_start: the champion of toy was made from toy-.*restore it"):
            warm_start.champion(store, "toy", None)


def test_shapes_are_strict() -> None:
    layout = {"grids": [[1, 1], [2, 2]], "vocabulary": 16}
    tokenizer = ModelSpec(
        "tokenizer",
        "var_vq",
        {"scales": [1, 2], "codes": 16, "dim": 4, "channels": 8, "multipliers": [1, 2], "patch": 1},
        {},
        {"signal": signals.image(8, 1).to_dict()},
    ).to_dict()
    given = {"layout": layout, "classes": 2, "tokenizer": tokenizer}
    small, deep = (ModelSpec("generator", "var", {"depth": d, "width": 16, "heads": 1}, {}, given) for d in (1, 2))
    check_warm_start(small, small, "toy-0")
    with pytest.raises(ConfigError, match=r"generator\.warm_start: toy-0 \(var\) does not fit recipe 'var': .* is missing there and \("):
        check_warm_start(deep, small, "toy-0")
    more = ModelSpec("generator", "var", dict(small.args), {}, {**given, "classes": 3})
    with pytest.raises(ConfigError, match=r"is \(\d+, 16\) there and \(\d+, 16\) here"):
        check_warm_start(more, small, "toy-0")


def test_the_registry_says_who_is_champion(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    assert tags_of(uri, "toy", "champion") is None  # no database
    path.write_bytes(empty_database())
    assert tags_of(uri, "toy", "champion") is None  # a registry that does not know the model may have lost it
    with sqlite3.connect(path) as database:
        database.execute("insert into registered_models (name) values ('toy')")
        assert tags_of(uri, "toy", "champion") is None  # not written yet
    assert tags_of(uri, "toy", "champion") == {}
    with sqlite3.connect(path) as database:
        database.execute("insert into model_versions (name, version, current_stage) values ('toy', 2, 'None')")
        database.execute("insert into model_version_tags (name, version, key, value) values ('toy', 2, 'a', 'b')")
        database.execute("insert into registered_model_aliases (name, alias, version) values ('toy', 'champion', 2)")
    assert tags_of(uri, "toy", "champion") == {"a": "b"}
    assert tags_of("http://127.0.0.1:9", "toy", "champion") is None


def test_a_registry_behind_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    answers = {
        "registered-models/get": {"registered_model": {"aliases": [{"alias": "champion", "version": "3"}]}},
        "model-versions/get": {"model_version": {"tags": [{"key": "a", "value": "b"}]}},
    }
    asked: list[Any] = []

    def urlopen(request: Any, timeout: float) -> Any:
        asked.append(request)
        return io.BytesIO(json.dumps(answers[request.full_url.partition("mlflow/")[2].partition("?")[0]]).encode())

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert tags_of("http://127.0.0.1:5000", "toy", "champion") == {"a": "b"}
    assert asked[1].full_url.endswith("model-versions/get?name=toy&version=3")
    assert not asked[0].headers
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word")
    assert tags_of("http://127.0.0.1:5000", "toy", "challenger") == {}
    assert asked[-1].headers == {"Authorization": "Basic bWU6d29yZA=="}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")  # MLflow's client prefers a user and password too
    assert tags_of("http://127.0.0.1:5000", "toy", "challenger") == {}
    assert asked[-1].headers == {"Authorization": "Basic bWU6d29yZA=="}
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert tags_of("http://127.0.0.1:5000", "toy", "challenger") == {}
    assert asked[-1].headers == {"Authorization": "Bearer abc"}

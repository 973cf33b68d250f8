"""The plan: what is cached, what would run and why, before anything runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import complete, images, ran, run, source_fixture, stand_in, statuses  # noqa: F401

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import identity
from tokenloom.flows import planning
from tokenloom.models.core import signals
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.steps.base import Context, Inputs
from tokenloom.tasks.steps.ingest import INGEST
from tokenloom.tasks.steps.train_tokenizer import TRAIN_BASE, TRAIN_TOKENIZER
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store


def test_an_empty_store_has_everything_before_it(source: Path, store: Store) -> None:
    plan = planning.plan(run(source), store)
    assert [one.name for one in plan] == [name for name in planning.STEPS if name not in ("train_base", "train_density")]
    assert plan[0].status == "run"
    assert {one.status for one in plan[1:]} == {"unknown"}
    assert all("ingest" in one.reason for one in plan[1:3])
    assert not list(store.root.rglob("*.parquet"))


def test_a_complete_store_has_nothing_to_do(source: Path, store: Store) -> None:
    config = run(source)
    made = complete(config, store)
    plan = planning.plan(config, store)
    assert [one.status for one in plan] == ["cached"] * 7
    assert [one.artifact for one in plan] == list(made.values())
    assert {one.row()["fingerprint"] for one in plan} == {a.fingerprint for a in made.values()}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ("generator.args.depth=2", ["train_generator", "evaluate", "register"]),
        ("generator.train.steps=3", ["train_generator", "evaluate", "register"]),
        ("tokenizer.train.seed=1", ["train_tokenizer", "extract", "train_generator", "evaluate", "register"]),
        ("sample.guidance=2", ["evaluate", "register"]),
        ("evaluate.samples=20", ["evaluate", "register"]),
        ("register.floor.precision=0.1", ["register"]),
        ("generator.train.log_every=1", []),
        ("tokenizer.train.checkpoint_every=1", []),
        ("name=other", ["register"]),  # the registered model's name; everything else is shared
    ],
)
def test_an_edit_runs_what_it_shapes_and_no_more(edit: str, expected: list[str], source: Path, store: Store) -> None:
    complete(run(source), store)
    assert ran(run(source, edit), store) == expected


def test_features_are_shared_by_all_methods(source: Path, store: Store) -> None:
    complete(run(source), store)
    other = {one.name: one for one in planning.plan(run(source, "generator.args.depth=2", "tokenizer.train.steps=5"), store)}
    assert other["features"].status == "cached"


def test_the_reason_names_the_field_with_its_old_and_new_value(source: Path, store: Store) -> None:
    complete(run(source), store)
    plan = {one.name: one for one in planning.plan(run(source, "generator.train.steps=3"), store)}
    assert "train.steps: 2 -> 3" in plan["train_generator"].reason
    assert "input generator" in plan["evaluate"].reason
    assert plan["evaluate"].spec is not None
    assert plan["evaluate"].spec.inputs["generator"].fingerprint == plan["train_generator"].fingerprint


def test_a_lost_file_is_noticed_and_only_its_step_runs(source: Path, store: Store) -> None:
    config = run(source)
    made = complete(config, store)
    (Path(made["generator"].uri) / "file.txt").unlink()
    assert ran(config, store) == ["train_generator"]
    plan = {one.name: one for one in planning.plan(config, store)}
    assert "file.txt is missing" in plan["train_generator"].reason


def test_new_images_are_noticed(source: Path, store: Store) -> None:
    config = run(source)
    complete(config, store)
    images(source, 40, 44)
    assert statuses(config, store)["ingest"] == "run"
    assert "4" in planning.plan(config, store)[0].reason


def test_a_pinned_tokenizer_stays_the_first_one(source: Path, store: Store) -> None:
    pinned = run(source, "tokenizer.pinned=true")
    first = complete(pinned, store)["tokenizer"]
    images(source, 40, 60)
    ingest(pinned.name, pinned.data, store)
    plan = {one.name: one for one in planning.plan(pinned, store)}
    assert plan["train_tokenizer"].artifact == first
    assert plan["train_tokenizer"].reason == "tokenizer.pinned"
    assert plan["extract"].status == "run"
    assert plan["extract"].spec is not None
    assert plan["extract"].spec.inputs["tokenizer"] == first
    free = {one.name: one for one in planning.plan(run(source), store)}
    assert free["train_tokenizer"].status == "run"


@pytest.mark.parametrize("edit", ["tokenizer.args.codes=8", "tokenizer.train.steps=3", "tokenizer.recipe=var_vq_other"])
def test_a_pinned_tokenizer_is_one_of_this_recipe(edit: str, source: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenloom.models.core import registry

    complete(run(source, "tokenizer.pinned=true"), store)
    monkeypatch.setitem(registry._RECIPES, "var_vq_other", replace(registry.get("var_vq"), name="var_vq_other"))
    plan = {one.name: one for one in planning.plan(run(source, "tokenizer.pinned=true", edit), store)}
    assert plan["train_tokenizer"].status == "run"
    assert edit.split("=")[0].split(".")[-1] in plan["train_tokenizer"].reason


def test_the_base_of_a_run_is_pinned_by_no_run_of_its_name(source: Path, store: Store) -> None:
    config = run(source, "name=toy-base", "tokenizer.pinned=true")
    section = config.tokenizer.model_dump(mode="json", exclude={"base", "pinned", "warm_start", "fresh"})
    answer = TRAIN_BASE.plan(
        Context(run(source, f"tokenizer.base={json.dumps(section)}"), store),
        {"dataset": ingest("toy", config.data, store).artifact},
    )
    assert isinstance(answer, StepSpec)
    assert stand_in(answer, store).name == "toy-base"
    images(source, 40, 60)
    ingest("toy", config.data, store)
    assert statuses(config, store)["train_tokenizer"] == "run"


def test_how_a_run_samples_is_noted_with_its_generator(source: Path, store: Store) -> None:
    plain, guided = (complete(run(source, *edit), store)["generator"] for edit in ((), ("sample.guidance=2",)))
    assert plain == guided  # it shapes no weights
    again = complete(run(source, "sample.guidance=2", "generator.train.steps=3"), store)["generator"]
    assert store.record(again).notes["sample"]["guidance"] == 2


def test_a_tokenizer_in_use(source: Path, store: Store) -> None:
    trained = complete(run(source), store)["tokenizer"]
    for reference in ("toy", trained.id, trained.fingerprint[:6]):
        plan = {one.name: one for one in planning.plan(run(source, f"tokenizer={{use: {reference!r}}}", "name=second"), store)}
        assert plan["train_tokenizer"].artifact == trained
        assert plan["train_generator"].status == "cached"  # the same tokens, the same recipe
    shutil.rmtree(trained.uri)
    with pytest.raises(ConfigError, match=r"tokenizer\.use: "):
        planning.plan(run(source, "tokenizer={use: toy}"), store)


def test_a_damaged_tokenizer_in_use_stops_the_plan(source: Path, store: Store) -> None:
    trained = complete(run(source), store)["tokenizer"]
    (Path(trained.uri) / "file.txt").unlink()
    with pytest.raises(ArtifactError, match=r"file\.txt is missing"):
        planning.plan(run(source, "tokenizer={use: toy}"), store)


def test_a_step_alone_names_the_one_before_it(source: Path, store: Store) -> None:
    config = run(source)
    with pytest.raises(ConfigError, match="step extract needs dataset, which is not in the store: run step ingest first"):
        planning.inputs("extract", config, store)
    made = complete(config, store)
    assert planning.inputs("evaluate", config, store) == {role: made[role] for role in ("generator", "tokenizer", "dataset", "features")}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("tokenizer.args.scales=[1, 2, 5]", "scales"),
        ("tokenizer.args.codes=1", "codes"),
        ("generator.args.classes=1", "classes"),  # the data has two
        ("generator.recipe=vra", "unknown generator recipe"),
        ("generator.args.dephts=1", "dephts"),
        ("generator.set={net.dropuot: 0.1}", "dropuot"),
        ("data.size=9", "9"),
        ("sample.steps=4", r"sample\.steps"),  # scales are not cut into steps
        ("sample.decoder=jacobi", r"sample\.decoder=jacobi: the feed NextScale"),  # and have no window of drafts
        ("evaluate.features=weights.safetensors", r"evaluate\.features"),
    ],
)
def test_what_cannot_work_is_refused_before_work(edit: str, message: str, source: Path, store: Store) -> None:
    config = run(source, edit)
    with pytest.raises(ConfigError, match=message):
        planning.check(config, store, planning.plan(config, store))
    assert not list(store.root.rglob("record.json"))


def test_a_run_that_can_work_passes_the_check(source: Path, store: Store) -> None:
    planning.check(run(source), store, planning.plan(run(source), store))


def test_a_tokenizer_of_another_size_is_refused(source: Path, store: Store) -> None:
    config = run(source)
    dataset = ingest(config.name, config.data, store).artifact
    step = TRAIN_TOKENIZER.plan(Context(config, store), {"dataset": dataset})
    assert isinstance(step, StepSpec)
    given = {"signal": signals.image(16, 1).to_dict()}
    spec = {"kind": "tokenizer", "recipe": "var_vq", "args": dict(config.tokenizer.args), "set": {}, "given": given}
    stand_in(step, store, {"spec": spec})
    used = run(source, "tokenizer={use: toy}")
    with pytest.raises(ConfigError, match=r"made for shape 16x16, the data has 8x8"):
        planning.check(used, store, planning.plan(used, store))


def test_a_registration_that_the_registry_lost_runs_again(source: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenloom.tasks.tracking.register

    config = run(source)
    complete(config, store)
    answers: Iterator[bool] = iter([False, True])
    monkeypatch.setattr(tokenloom.tasks.tracking.register, "lost", lambda *_: next(answers))
    assert planning.plan(config, store, "sqlite:///x.db")[-1].status == "cached"
    again = planning.plan(config, store, "sqlite:///x.db")[-1]
    assert (again.status, again.artifact) == ("run", None)
    assert "registry" in again.reason


def test_the_name_of_a_run_recipe_ignores_how_it_is_executed() -> None:
    base = planning.fingerprint(load_run("smoke_var"))
    assert planning.fingerprint(load_run("smoke_var", ["generator.train.log_every=9"])) == base
    assert planning.fingerprint(load_run("smoke_var", ["generator.train.steps=9"])) != base
    assert identity(load_run("smoke_var"))["register_"]["gate"] == "fd"


def test_a_step_notes_its_outcome_and_its_failure(source: Path, root: Path) -> None:
    from tokenloom.flows import steps
    from tokenloom.flows.workspace import Workspace

    work = Workspace("toy", root, str(root / "store"))
    artifact = steps.carry_out(INGEST, run(source), work, {})
    assert [(d.name, d.status, d.artifact) for d in work.done] == [("ingest", "ran", artifact)]
    assert steps.carry_out(INGEST, run(source), work, {}) == artifact
    assert [d.status for d in work.done] == ["cached"]

    def fails(_context: Context, _inputs: Inputs) -> Outcome:
        raise ArtifactError("shard.parquet: cut short")

    with pytest.raises(ArtifactError):
        steps.carry_out(replace(INGEST, name="broken", run=fails), run(source), work, {})
    assert work.done[-1].row() == {
        "name": "broken", "status": "failed", "fingerprint": None, "seconds": 0.0, "uri": None, "artifact": None,
        "error": "shard.parquet: cut short",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["tokenloom.flows.pipeline.pipeline", *(f"tokenloom.flows.steps.{step}_flow" for step in planning.STEPS)])
def test_every_flow_can_be_deployed(name: str) -> None:
    """By its module entrypoint, and by value, as a served flow reaches the process that runs it."""
    import cloudpickle
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(name, use_placeholder_flow=False)
    assert flow.parameters.properties["config"]["position"] == 0
    plain = load_run("smoke_var").model_dump(mode="json", by_alias=True)
    for each in (flow, cloudpickle.loads(cloudpickle.dumps(flow))):
        assert each.validate_parameters({"config": plain})["config"] == load_run("smoke_var")
        with pytest.raises(Exception, match="stepz"):
            each.validate_parameters({"config": plain | {"stepz": 1}})


def test_only_failures_that_may_pass_are_tried_again() -> None:
    from tokenloom.flows.steps import transient

    class State:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self) -> None:
            raise self.error

    class EndpointConnectionError(Exception):
        pass

    passing = (ConnectionError(), TimeoutError(), EndpointConnectionError())
    lasting = (ArtifactError("x"), ConfigError("x"), FileNotFoundError(), ValueError())
    assert [transient(None, None, State(error)) for error in passing] == [True] * len(passing)
    assert [transient(None, None, State(error)) for error in lasting] == [False] * len(lasting)

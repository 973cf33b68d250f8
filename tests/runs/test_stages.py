"""Further training of a generator: each stage is a step and an artifact on the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inline_runs import here_fixture, ran, scheduled  # noqa: F401
from safetensors.torch import load_file
from toy_runs import complete, run, source_fixture, statuses  # noqa: F401
from toy_runs import ran as to_run

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.flows import planning
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.sample import open_model
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.lineage import lineage_of

TUNE: dict[str, Any] = {"name": "tune", "objective": {"nll": {}}, "train": {"steps": 2, "batch": 4, "seed": 5}}
AGAIN: dict[str, Any] = {"name": "again", "train": {"steps": 1, "batch": 4}}
QUICK = "evaluate={samples: 10, neighbours: 1, components: 2, metrics: [fd, nll]}"


def staged(source: Path, *stages: dict[str, Any], sets: tuple[str, ...] = ()) -> RunConfig:
    document = run(source, QUICK, *sets).model_dump(mode="json", by_alias=True)
    return RunConfig.model_validate(document | {"stages": list(stages)})


def test_a_run_without_stages_keeps_its_name() -> None:
    assert "stages" not in identity(planning_run())


def planning_run() -> RunConfig:
    from tokenloom.configs.load import load_run

    return load_run("smoke_var")


def test_stages_come_after_the_generator_and_the_last_one_is_judged_and_registered(source: Path, store: Store) -> None:
    config = staged(source, TUNE, AGAIN)
    names = [one.name for one in planning.plan(config, store)]
    assert names == [
        "ingest", "train_tokenizer", "extract", "features", "train_generator", "stage_tune", "stage_again", "evaluate", "register"
    ]  # fmt: skip
    made = complete(config, store)
    records = {role: store.record(artifact) for role, artifact in made.items()}
    assert records["stage_tune"].inputs["warm_start"] == made["generator"]
    assert records["stage_again"].inputs["warm_start"] == made["stage_tune"]
    assert {records[role].artifact.kind for role in ("generator", "stage_tune", "stage_again")} == {"generator"}
    assert records["evaluation"].inputs["generator"] == records["registration"].inputs["generator"] == made["stage_again"]
    assert set(statuses(config, store).values()) == {"cached"}


def test_a_changed_stage_runs_it_and_what_follows(source: Path, store: Store) -> None:
    complete(staged(source, TUNE, AGAIN), store)
    longer = AGAIN | {"train": AGAIN["train"] | {"steps": 3}}
    assert to_run(staged(source, TUNE, longer), store) == ["stage_again", "evaluate", "register"]
    assert to_run(staged(source, TUNE | {"name": "other"}, AGAIN), store) == []  # a name shapes no weights
    assert to_run(staged(source), store) == ["evaluate", "register"]
    deeper = staged(source, TUNE, AGAIN, sets=("generator.args.depth=2",))
    assert to_run(deeper, store) == ["train_generator", "stage_tune", "stage_again", "evaluate", "register"]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objective": {"nul": {}}}, r"stages\[0\].*nul"),
        ({"objective": {"nll": {"weight": 2}}}, r"stages\[0\].*weight"),
        ({"objective": {"whole_grid": {}}}, r"stages\[0\].*objective \(the objective\) requires"),
        ({"roles": {"teacher": "nobody"}}, r"stages\[0\]\.roles\.teacher: .*nobody"),
    ],
)
def test_what_a_stage_cannot_do_is_refused_before_work(stage: dict[str, Any], message: str, source: Path, store: Store) -> None:
    config = staged(source, TUNE | stage)
    with pytest.raises(ConfigError, match=message):
        planning.check(config, store, planning.plan(config, store))
    assert not list(store.root.rglob("record.json"))


def test_stages_need_a_generator_and_names_of_their_own(source: Path) -> None:
    with pytest.raises(ValueError, match="stages is given, but there is no generator"):
        staged(source, TUNE, sets=("generator=null",))
    with pytest.raises(ValueError, match="two of them are named 'tune'"):
        staged(source, TUNE, TUNE)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(Path(artifact.uri) / "weights.safetensors")


@pytest.mark.slow
def test_a_stage_goes_on_from_the_weights_before_it_and_is_what_is_served(source: Path, here: Store) -> None:
    still = AGAIN | {"train": AGAIN["train"] | {"optimizer": {"lr": 1e-12}}}
    rows, _ = scheduled(staged(source, TUNE, still), here)
    assert set(ran(rows)) == set(rows)
    made = {name: here.resolve(rows[name]["artifact"], "generator") for name in ("train_generator", "stage_tune", "stage_again")}
    first, tuned, same = (weights(artifact) for artifact in made.values())
    assert first.keys() == tuned.keys() == same.keys()
    assert any((first[name] != tuned[name]).any() for name in first)
    for name in tuned:  # at no rate to speak of the weights stay those it began with
        torch.testing.assert_close(same[name], tuned[name], atol=1e-6, rtol=0)
    version = here.records("registration")[0]
    assert made["train_generator"] in lineage_of(here, version.artifact)["ancestors"]
    _, title = open_model("toy", here)
    assert made["stage_again"].id in title
    again, said = scheduled(staged(source, TUNE, still), here)
    assert ran(again) == []
    assert said.startswith("nothing to do")

"""What stages and densities are made from: the config of the step before with another objective, its weights, its data."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from tokenloom.configs.schema import MethodConfig
from tokenloom.models.core.config import ConfigError, from_dict
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.store.artifacts import Artifact, StepSpec
from tokenloom.tasks.training.plans import plan_density, plan_stage, plan_training

TOKENS, TOKENIZER = (Artifact(kind, "run", "0" * 12, "") for kind in ("tokens", "tokenizer"))
START = Artifact("generator", "run", "1" * 12, "")
TRAIN = TrainSettings(steps=5, batch=4)


def generator(recipe: str, **args: Any) -> StepSpec:
    return plan_training("generator", "run", recipe, args, {}, TRAIN, {"tokens": TOKENS, "tokenizer": TOKENIZER})


def test_a_stage_is_the_same_model_from_its_weights_under_another_objective() -> None:
    before = generator("heptapod", depth=2)
    stage = plan_stage("run", before, START, replace(TRAIN, seed=9), {"nll": {}})
    ours, theirs = (from_dict(step.config["config"]) for step in (stage, before))
    assert ours == replace(theirs, objective=type(ours.objective)())  # type: ignore[attr-defined, type-var]
    assert ours.axis_labels["objective"] == "NLL"
    assert theirs.axis_labels["objective"] == "whole grid"
    assert stage.inputs == {"tokens": TOKENS, "tokenizer": TOKENIZER, "warm_start": START}
    assert (stage.kind, stage.config["train"]["seed"], stage.notes["recipe"]) == ("generator", 9, "heptapod")
    assert stage.notes["train"] == {**asdict(replace(TRAIN, seed=9)), "optimizer": stage.notes["train"]["optimizer"]}


def test_all_that_shapes_a_stage_is_in_its_fingerprint() -> None:
    before = generator("heptapod", depth=2)
    stages = [
        plan_stage("run", before, START, TRAIN),
        plan_stage("run", before, START, TRAIN, {"nll": {}}),
        plan_stage("run", before, START, TRAIN, {"whole_grid": {"later": 0.5}}),
        plan_stage("run", before, START, replace(TRAIN, steps=6)),
        plan_stage("run", before, replace(START, fingerprint="2" * 12), TRAIN),
    ]
    assert len({stage.fingerprint for stage in [before, *stages]}) == 6
    assert plan_stage("run", before, START, replace(TRAIN, log_every=1)).fingerprint == stages[0].fingerprint


def test_stages_stack() -> None:
    first = plan_stage("run", generator("heptapod", depth=2), START, TRAIN, {"nll": {}})
    second = plan_stage("run", first, replace(START, fingerprint="3" * 12), TRAIN)
    assert second.config["config"] == first.config["config"]
    assert second.inputs["warm_start"].fingerprint == "3" * 12


@pytest.mark.parametrize(
    ("recipe", "objective", "message"),
    [
        ("raster", {"nil": {}}, r"stages\[0\]\.objective.*write one of .*nll"),
        ("raster", {"nll": {"weight": 1}}, r"stages\[0\]\.objective\.nll: unknown field 'weight'"),
        ("vq_ddm", {"nll": {}}, r"stages\[0\]\.objective: 'vq_ddm' has a loss of its own; leave objective out"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work(recipe: str, objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_stage("run", generator(recipe), START, TRAIN, objective, where="stages[0]")


def test_a_density_depends_on_the_dataset_alone() -> None:
    dataset = Artifact("dataset", "run", "4" * 12, "")
    step = plan_density("run", MethodConfig(recipe="iwae", args={"latent": 4}, train=TRAIN), dataset)
    assert (step.step, step.kind, step.inputs) == ("train_density", "density", {"dataset": dataset})
    assert step.config["config"]["latent"] == 4
    with pytest.raises(ConfigError, match=r"unknown density recipe 'raster'; there are: .*iwae"):
        plan_density("run", MethodConfig(recipe="raster", train=TRAIN), dataset)

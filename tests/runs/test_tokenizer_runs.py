"""Runs that end with their tokenizer: no generator, nothing to register, all else as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import document, tokenloom
from toy_runs import complete, ran, run, source_fixture, statuses  # noqa: F401

from tokenloom.configs.load import load_run
from tokenloom.flows import planning
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.store.artifacts import Store

CHAIN = ["ingest", "train_tokenizer", "extract", "features", "evaluate"]


def alone(source: Path, *sets: str) -> Any:
    return run(source, "generator=null", *sets)


def test_the_chain_ends_with_the_evaluation(source: Path, store: Store) -> None:
    config = alone(source)
    assert [one.name for one in planning.plan(config, store)] == CHAIN
    made = complete(config, store)
    assert statuses(config, store) == dict.fromkeys(CHAIN, "cached")
    assert store.record(made["evaluation"]).inputs.keys() == {"tokenizer", "dataset", "features"}
    planning.check(config, store, planning.plan(config, store))


def test_a_generator_added_later_finds_the_tokenizer_and_its_tokens(source: Path, store: Store) -> None:
    complete(alone(source), store)
    assert ran(run(source), store) == ["train_generator", "evaluate", "register"]


def test_how_samples_would_be_judged_does_not_shape_the_evaluation(source: Path, store: Store) -> None:
    complete(alone(source), store)
    assert ran(alone(source, "evaluate.samples=500", "evaluate.seed=4"), store) == []
    assert ran(alone(source, "tokenizer.args.codes=8"), store) == ["train_tokenizer", "extract", "evaluate"]


def test_a_step_that_the_run_does_not_have(source: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"run toy has no step train_generator; it has: ingest, train_tokenizer"):
        planning.inputs("train_generator", alone(source), store)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("sample.guidance=2", r"sample is given, but there is no generator"),
        ("register.gate=psnr", r"register is given, but there is no generator"),
    ],
)
def test_sections_that_mean_nothing_without_a_generator(edit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run("smoke_vq", [edit])


def test_metrics_that_say_nothing_about_a_tokenizer(source: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.metrics=\['fd'\]: none judges a tokenizer alone; add reconstruction"):
        complete(alone(source, "evaluate.metrics=[fd]"), store)


def test_a_whole_document_means_the_same() -> None:
    """As Prefect keeps a run: every field is written, also those without a meaning here."""
    from tokenloom.configs.schema import RunConfig

    config = load_run("smoke_vq")
    again = RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json", by_alias=True))))
    assert again == config
    assert planning.fingerprint(again) == planning.fingerprint(config)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_smoke_run_of_a_tokenizer(tmp_path: Path) -> None:
    made = document(tokenloom(tmp_path, "run", "smoke_vq", "--json"))
    assert [(row["name"], row["status"]) for row in made["steps"]] == [(name, "ran") for name in CHAIN]
    assert (made["model"], made["registered"]) == (None, {})
    assert {Path(path).stem for path in made["pictures"]} >= {"reconstructions", "codebook", "curves"}
    assert {"psnr", "rfd_classifier", "codebook_use"} <= made["metrics"].keys()
    again = document(tokenloom(tmp_path, "run", "smoke_vq", "--json"))
    assert {row["status"] for row in again["steps"]} == {"cached"}
    assert tokenloom(tmp_path, "run", "smoke_vq").returncode == 0  # the table
    shown = document(tokenloom(tmp_path, "show", "smoke_vq", "--json"))
    kinds = {one["id"].split("/")[0] for one in shown["artifacts"]}
    assert kinds >= {"dataset", "tokenizer", "tokens", "evaluation"}
    assert not kinds & {"generator", "registration"}
    compared = document(tokenloom(tmp_path, "compare", "smoke_vq", "--json", "--out", str(tmp_path / "compared")))
    assert compared["rows"][0]["run"] == "smoke-vq"
    runs = document(tokenloom(tmp_path, "runs", "--json"))
    assert runs["runs"][0]["generator"] is None

"""A run of a density: the data itself is modelled, so no tokens are made; all else is as ever."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_runs import here_fixture, ran, scheduled  # noqa: F401
from toy_runs import complete, run, source_fixture, statuses  # noqa: F401
from toy_runs import ran as to_run

from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.compare import leaderboard
from tokenloom.tasks.evaluation.sample import sample_model
from tokenloom.tasks.runtime.checks import check_used_density
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.tracking.tracker import Tracker

CHAIN = ["ingest", "features", "train_density", "evaluate", "register"]
DENSITY = {"recipe": "iwae", "args": {"latent": 4, "width": 16, "samples": 2, "judged": 3}, "train": {"steps": 2, "batch": 4}}


def density(source: Path, **sections: Any) -> RunConfig:
    quick = "evaluate={samples: 10, neighbours: 1, components: 2, metrics: [fd, nll, recognition]}"
    document = run(source, quick).model_dump(mode="json", by_alias=True)
    return RunConfig.model_validate(document | {"tokenizer": None, "generator": None, "density": DENSITY} | sections)


def test_the_chain_has_no_tokens(source: Path, store: Store) -> None:
    config = density(source)
    assert [one.name for one in planning.plan(config, store)] == CHAIN
    planning.check(config, store, planning.plan(config, store))
    made = complete(config, store)
    assert store.record(made["evaluation"]).inputs.keys() == {"density", "dataset", "features"}
    assert store.record(made["registration"]).inputs.keys() == {"evaluation", "density"}
    assert statuses(config, store) == dict.fromkeys(CHAIN, "cached")
    wider = DENSITY | {"args": DENSITY["args"] | {"width": 8}}
    assert to_run(density(source, density=wider), store) == ["train_density", "evaluate", "register"]
    used = density(source, density={"use": made["density"].id}, name="as-it-is")
    planned = {one.name: one for one in planning.plan(used, store)}
    assert (planned["train_density"].artifact, planned["train_density"].reason) == (made["density"], "density.use")
    signal = signals.image(8, 1).to_dict()
    made_for = ModelSpec("density", "iwae", DENSITY["args"], {}, {"signal": signal, "classes": 2})
    check_used_density(used, 2, made_for)
    with pytest.raises(ConfigError, match=r"density\.use=.*models signals"):
        check_used_density(used, 2, replace(made_for, given={"signal": signals.image(16, 1).to_dict(), "classes": 2}))
    assert complete(used, store)["density"] == made["density"]
    assert to_run(density(source, evaluate={**config.evaluate.model_dump(), "metrics": ["fd", "nll", "text"]}), store) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"density": None}, "tokenizer: is missing"),
        ({"tokenizer": {"recipe": "vq", "train": {"steps": 1, "batch": 1}}}, "tokenizer is given, but a density"),
        ({"generator": {"recipe": "var", "train": {"steps": 1, "batch": 1}}}, "generator is given, but a density"),
        ({"sample": {"guidance": 2}}, "sample is given, but a density"),
        ({"density": {"use": "x", "recipe": "iwae"}}, r"either density\.recipe .* or density\.use"),
        ({"density": {"use": "x", "args": {"latent": 2}}}, r"density\.args goes with density\.recipe"),
        ({"density": {"recipe": "iwae"}}, r"density\.train is missing"),
    ],
)
def test_sections_that_mean_nothing_to_a_density(sections: dict[str, Any], message: str, source: Path) -> None:
    with pytest.raises(ValueError, match=message):
        density(source, **sections)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"density": DENSITY | {"args": {"latent": 0}}}, r"density.*latent"),
        ({"density": DENSITY | {"recipe": "iwea"}}, "unknown density recipe"),
        ({"density": {"use": "nobody"}}, r"density\.use: density 'nobody' is not in the store"),
        ({"evaluate": {"metrics": ["text"]}}, "none judges a density"),
        ({"register": {"gate": "recognition"}}, "recognition"),
    ],
)
def test_what_cannot_work_is_refused_before_work(sections: dict[str, Any], message: str, source: Path, store: Store) -> None:
    config = density(source, **sections)
    with pytest.raises(ConfigError, match=message):
        planning.check(config, store, planning.plan(config, store))


@pytest.mark.slow
def test_a_density_is_trained_judged_registered_and_sampled(source: Path, here: Store, tmp_path: Path) -> None:
    rows, said = scheduled(density(source), here)
    assert ran(rows) == CHAIN
    assert "models:/toy/1 is champion" in said
    record = here.records("evaluation")[0]
    assert {"fd_classifier", "bound_bits_per_dim", "images_per_second"} <= record.metrics.keys()
    assert "recognition" not in record.metrics  # an unconditional model has no classes to be right about
    tracker = Tracker(None, here.root, "toy")
    drawn = {}
    for at, name in enumerate(("models:/toy@champion", "toy", record.artifact.id)):
        sample_model(name, here, tracker, total=4, seed=3, out=tmp_path / f"{at}.npz")
        with np.load(tmp_path / f"{at}.npz") as file:
            drawn[name] = file["images"]
    first, *others = drawn.values()
    assert first.shape == (4, 8, 8, 1)
    for other in others:
        np.testing.assert_array_equal(first, other)
    with pytest.raises(ConfigError, match="guidance: IWAE has no such setting; it has none"):
        sample_model("toy", here, tracker, total=4, guidance=2.0, out=tmp_path / "x.npz")
    assert leaderboard(here, ["toy"])[0]["run"] == "toy"
    again, said = scheduled(density(source), here)
    assert ran(again) == []

"""A draft model from its name in a run file to samples: planned as an input, opened with the pair, judged, bundled, sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from stand_ins import FEW, judge_inline, world, write_generator

from tokenloom.configs.schema import SampleConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.tasks.evaluation.evaluate import draft_model, plan_evaluate
from tokenloom.tasks.evaluation.sample import open_model, sample_model
from tokenloom.tasks.modalities.image.served.draw import sample_shards
from tokenloom.tasks.serving import bundle
from tokenloom.tasks.store.artifacts import Artifact, Record, Store

CALLS = {"net_calls", "draft_calls", "tokens_per_call"}


def drafted(reference: str) -> SampleConfig:
    return SampleConfig(decoder={"draft_model": {"window": 3, "model": reference}})


class Made(NamedTuple):
    store: Store
    small: Artifact
    evaluation: Record


@pytest.fixture(scope="module", name="made")
def made_fixture() -> Iterator[Made]:
    """An evaluation of the toy store's raster generator with another one that drafts for it."""
    store, known = world().store, world().store.record(world().raster)
    models = [known.inputs[role] for role in ("generator", "tokenizer", "dataset", "features")]
    small = write_generator(store, models[2], models[1], "small", "raster", seed=4)
    evaluation = judge_inline(store, "fast", *models, config=FEW.model_copy(update={"metrics": ["fd"]}), sample=drafted("small"))
    yield Made(store, small, store.record(evaluation))
    for artifact in (evaluation, small):
        store.storage.delete(artifact.folder)


def test_the_draft_model_is_an_input_whatever_it_is_called(made: Made) -> None:
    assert made.evaluation.inputs["draft"] == made.small
    assert made.evaluation.config["sample"]["decoder"] == {"draft_model": {"window": 3}}
    models = [made.evaluation.inputs[role] for role in ("generator", "tokenizer", "dataset", "features")]
    plans = {
        plan_evaluate("fast", *models, drafted(name), FEW, made.store).fingerprint for name in ("small", made.small.id, made.small.id[:-3])
    }
    assert len(plans) == 1
    other = plan_evaluate("fast", *models, SampleConfig(decoder={"draft_model": {"window": 3}}), FEW, made.store)
    assert other.fingerprint not in plans
    with pytest.raises(ConfigError, match=r"^sample\.decoder\.draft_model\.model: .*nobody"):
        draft_model(identity(drafted("nobody")), made.store)


def test_people_are_told_how_samples_were_decoded(made: Made) -> None:
    found = made.evaluation.metrics
    assert found.keys() >= CALLS
    assert 1 < found["tokens_per_call"] <= 4
    plain = made.store.record(world().raster).metrics
    assert (plain["net_calls"], plain["tokens_per_call"]) == (16, 1)
    assert "draft_calls" not in plain


def test_the_pair_is_opened_and_sampled_with_its_draft_model(made: Made, tmp_path: Path) -> None:
    pair, _ = open_model(made.evaluation.artifact.id, made.store)
    assert isinstance(pair.generator, GroupGenerator)
    assert pair.generator.draft is not None
    labels = np.arange(5)
    images = sample_shards(pair, labels, seed=2)
    models = {role: made.evaluation.inputs[role] for role in ("generator", "tokenizer", "draft")}
    served = bundle.write_bundle(tmp_path / "bundle", made.store, models, list(pair.classes), made.evaluation.config["sample"])
    assert (tmp_path / "bundle" / "draft" / "weights.safetensors").is_file()
    assert np.array_equal(sample_shards(served, labels, seed=2), images)


@pytest.mark.parametrize("decoder", ["jacobi", {"draft_model": {"window": 2, "model": "small"}}])
def test_any_decoder_is_asked_for_when_sampling(made: Made, tmp_path: Path, decoder: object) -> None:
    document = sample_model("digits-raster", made.store, None, out=tmp_path / "out.npz", total=4, decoder=decoder)  # type: ignore[arg-type]
    assert document["tokens_per_call"] > 1
    assert ("draft_calls" in document) == (decoder != "jacobi")


def test_a_model_of_other_tokens_or_of_another_kind_does_not_draft(made: Made, tmp_path: Path) -> None:
    for reference, message in (("digits-var", "for other tokens"), ("nobody", "nobody")):
        decoder = {"draft_model": {"model": reference}}
        with pytest.raises(ConfigError, match=message):
            sample_model("digits-raster", made.store, None, out=tmp_path / "out.npz", total=2, decoder=decoder)

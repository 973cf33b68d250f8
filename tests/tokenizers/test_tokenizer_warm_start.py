"""Tokenizers that start from the weights of another one: other sizes of images, other codebooks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from inline_runs import CPU, fit_here
from safetensors.torch import load_file
from toy_runs import run, source_fixture  # noqa: F401

from tokenloom.configs.schema import RunConfig
from tokenloom.flows import planning
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import get
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks.data.ingest import ingest
from tokenloom.tasks.steps.base import Context
from tokenloom.tasks.steps.train_tokenizer import TRAIN_TOKENIZER
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.training.carried import carried
from tokenloom.tasks.training.distributed import train_model

STILL = ("tokenizer.train.steps=1", "tokenizer.train.optimizer.lr=1e-30", "tokenizer.train.seed=9")


def trained(config: RunConfig, store: Store) -> tuple[Artifact, dict[str, torch.Tensor]]:
    """The run's tokenizer and its weights."""
    dataset = ingest(config.name, config.data, store).artifact
    planned = TRAIN_TOKENIZER.plan(Context(config, store), {"dataset": dataset})
    assert isinstance(planned, StepSpec)
    with mock.patch("tokenloom.tasks.training.distributed._fit", fit_here):
        made = train_model(planned, store, CPU).artifact
    return made, load_file(str(store.storage.local_path(f"{made.folder}/weights.safetensors")))


@pytest.fixture(name="first")
def first_fixture(source: Path, store: Store) -> tuple[Artifact, dict[str, torch.Tensor]]:
    return trained(run(source, "generator=null", "name=first"), store)


def test_another_size_of_images_keeps_every_weight(source: Path, store: Store, first: tuple[Artifact, dict[str, torch.Tensor]]) -> None:
    start, weights = first
    larger = run(source, "generator=null", "data.size=16", "tokenizer.args.scales=[1,2,8]", f"tokenizer.warm_start={start.id}", *STILL)
    planning.check(larger, store, planning.plan(larger, store))
    made, found = trained(larger, store)
    assert store.record(made).inputs["warm_start"] == start
    assert found.keys() == weights.keys()
    learned = [name for name in found if "ema" not in name and "codebook" not in name]
    assert all(torch.equal(found[name], weights[name]) for name in learned)
    other, fresh = trained(run(source, "generator=null", *STILL), store)
    assert other != made
    assert not all(torch.equal(fresh[name], weights[name]) for name in learned)


def test_another_codebook_starts_afresh(source: Path, store: Store, first: tuple[Artifact, dict[str, torch.Tensor]]) -> None:
    start, weights = first
    edits = ("generator=null", "tokenizer.args.codes=32", f"tokenizer.warm_start={start.id}", *STILL)
    with pytest.raises(ConfigError, match=r"^tokenizer\.warm_start: first-\w+ \(var_vq\) does not fit .*quantizer.*tokenizer\.fresh"):
        trained(run(source, *edits), store)
    config = run(source, *edits, "tokenizer.fresh=[quantizer]")
    made, found = trained(config, store)
    assert store.record(made).config["fresh"] == ["quantizer"]
    outside = [name for name in weights if not name.startswith("quantizer.")]
    assert all(torch.equal(found[name], weights[name]) for name in outside)
    assert {len(found[name]) for name in found if name.endswith("codebook.weight")} <= {32}


REFUSED = [
    (("tokenizer.fresh=[quantizer]",), r"tokenizer\.fresh=\['quantizer'\] goes with tokenizer\.warm_start"),
    (("tokenizer.warm_start=toy",), r"tokenizer\.warm_start='toy' is this run"),
    (("tokenizer.warm_start=nobody",), r"tokenizer\.warm_start: .*nobody"),
    (("tokenizer.warm_start=first", "tokenizer.fresh=[quantiser]"), r"fresh: there is no part 'quantiser'; parts: decoder, encoder"),
    (("tokenizer.warm_start=first", "tokenizer.args.channels=16"), r"first-\w+ \(var_vq\) does not fit recipe 'var_vq': decoder"),
]


def checked(source: Path, store: Store, *edits: str) -> None:
    config = run(source, "generator=null", *edits)
    planning.check(config, store, planning.plan(config, store))


def test_what_does_not_fit_is_said_before_work(source: Path, store: Store, first: tuple[Artifact, dict[str, torch.Tensor]]) -> None:
    for edits, message in REFUSED:
        with pytest.raises(ConfigError, match=message):
            checked(source, store, *edits)


def test_a_tokenizer_in_use_has_no_warm_start(source: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.warm_start goes with tokenizer\.recipe"):
        run(source, "generator=null", "tokenizer={use: a, warm_start: b}")


def test_positions_of_a_square_grid_are_resized() -> None:
    """A ramp over the grid stays a ramp with the same middle, and class tokens keep their row."""
    args = {"patch": 4, "width": 32, "depth": 1, "heads": 2, "codes": 16, "dim": 4}
    small, large = (get("vit_vq").config(args).build(signal=SignalSpec(shape=(side, side), channels=1)) for side in (16, 32))
    state = small.state_dict()
    ramp = torch.arange(4.0).expand(4, 4).reshape(16, 1).expand(16, 32).clone()
    state["encoder.position"] = ramp
    found = carried(large.state_dict(), state, (), "there")["encoder.position"].view(8, 8, 32)[..., 0]
    assert found.shape == (8, 8)
    assert found[3].diff().min() > 0
    torch.testing.assert_close(found[3] + found[3].flip(0), torch.full((8,), 3.0))
    torch.testing.assert_close(found, found[:1].expand(8, 8))
    table = torch.cat([torch.full((1, 2), 7.0), torch.ones(4, 2)])
    resized = carried({"position": torch.zeros(10, 2)}, {"position": table}, (), "there")["position"]
    torch.testing.assert_close(resized, torch.cat([table[:1], torch.ones(9, 2)]))
    with pytest.raises(ConfigError, match=r"there: position is \(5, 2\) there and \(7, 2\) here"):
        carried({"position": torch.zeros(7, 2)}, {"position": table}, (), "there")

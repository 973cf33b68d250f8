"""Collapse of a codebook: warned of once, with what is to be known, and kept in the record."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import toy
from image_rows import write_image_rows
from stand_ins import digits, new_store, write_dataset
from torch import Tensor, nn

from tokenloom.configs.schema import BaseConfig, ClusterConfig
from tokenloom.models.core import registry
from tokenloom.models.core.config import Config as PlainConfig
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.training.collapse import Watch, found
from tokenloom.tasks.training.curves import read_curves
from tokenloom.tasks.training.distributed import plan_tokenizer
from tokenloom.tasks.training.train_loop import train

SCALES = TokenLayout(grids=((1, 1), (4, 4)), vocabulary=256)


def test_a_healthy_codebook_is_left_alone():
    assert Watch(SCALES, 64, 100).look(50, {"perplexity_1x1": 12.0, "perplexity_4x4": 180.0, "perplexity": 200.0, "use": 0.9}) == {}


def test_a_warning_names_the_group_the_numbers_and_what_to_try():
    told = Watch(SCALES, 64, 100).look(20, {"perplexity_1x1": 30.0, "perplexity_4x4": 3.25, "use_4x4": 0.0312})
    assert list(told) == ["4x4"]
    for part in ("scale 4x4", "step 20 of 100", "3.25 of 256", "3.1%", "learning rate", "fewer codes"):
        assert part in told["4x4"]


def test_codes_that_a_batch_cannot_use_are_not_expected():
    assert Watch(SCALES, 16, 100).look(50, {"perplexity_1x1": 3.0}) == {}  # 16 vectors a step
    assert list(Watch(SCALES, 256, 100).look(50, {"perplexity_1x1": 3.0})) == ["1x1"]


def test_two_codes_and_many_codes():
    bits = TokenLayout(grids=((4, 4),), vocabulary=2, codebooks=3)
    told = Watch(bits, 16, 10).look(5, {"perplexity_book0": 1.05, "perplexity_book1": 1.2, "perplexity_book2": 1.99})
    assert list(told) == ["book0"]
    assert "codebook 0 is collapsing" in told["book0"]
    large = Watch(TokenLayout(grids=((8, 8),), vocabulary=1 << 18), 32, 10)
    assert large.look(5, {"perplexity": 300.0}) == {}  # of the 2048 vectors of a step
    assert list(large.look(6, {"perplexity": 100.0})) == [""]


def test_it_waits_a_fifth_of_the_steps_and_warns_once():
    watch = Watch(SCALES, 64, 100)
    assert watch.look(19, {"perplexity": 1.0}) == {}
    assert watch.look(20, {"perplexity": 1.0}).keys() == {""}
    assert watch.look(40, {"perplexity": 1.0}) == {}
    resumed = Watch(SCALES, 64, 100, [{"step": 20, "collapsed": {"": "text"}}])
    assert resumed.look(40, {"perplexity": 1.0, "perplexity_4x4": 1.0}).keys() == {"4x4"}


def test_latents_have_nothing_to_collapse():
    assert Watch(TokenLayout(grids=((4, 4),), channels=4), 64, 10).look(9, {"perplexity": 1.0}) == {}


class Lazy(Tokenizer):
    """A tokenizer that has sixteen codes and reports the use of one."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PlainConfig, tag="test.lazy"):
        def build(self, *, signal: Any) -> Lazy:
            return Lazy()

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(grids=((1, 1),), vocabulary=16)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        return {"loss": (batch.signal.mean() - self.level).square()}

    def after_step(self, draws: Draws) -> dict[str, float]:
        return {"use": 1 / 16, "perplexity": 1.0}

    def encode(self, image_BCHW: Tensor) -> Tokens:
        return Tokens(torch.zeros(len(image_BCHW), 1, dtype=torch.uint8), self.layout)

    def decode(self, tokens: Tokens) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def lazy():
    registry.names()
    registry.register("lazy", kind="tokenizer", paper="-", tiny={})(lambda: Lazy.Config())
    yield
    del registry._RECIPES["lazy"]


def test_training_warns_once_and_the_record_keeps_it(lazy, tmp_path, monkeypatch, caplog):
    from tokenloom.tasks.training import distributed

    store, (image, label) = new_store(tmp_path), digits()
    dataset = write_dataset(store, image[:40], label[:40], held_out=8)
    settings = TrainSettings(steps=10, batch=16, log_every=1, checkpoint_every=4)
    step = plan_tokenizer("lazy", BaseConfig(recipe="lazy", train=settings), dataset, store)

    def here(job: Any, *rest: Any) -> dict[str, Any]:
        stops = iter([False] * 5 + [True])
        from tokenloom.tasks.runtime.errors import Preempted

        with pytest.raises(Preempted):  # the warning comes at step 2, and a run that goes on knows of it
            train(job, stop=lambda: next(stops))
        return train(job)

    monkeypatch.setattr(distributed, "_fit", here)
    with caplog.at_level(logging.WARNING):
        made = distributed.train_model(step, store, ClusterConfig(execution=ExecutionSettings(workers=1, device="cpu")))
    warned = [r.getMessage() for r in caplog.records if "collapsing" in r.getMessage()]
    assert len(warned) == 1
    record = store.record(made.artifact)
    assert record.notes["warnings"] == warned
    assert "after step 2 of 10" in warned[0]
    assert list(found(read_curves(store.storage, made.artifact.folder))) == [""]
    assert "collapsed" not in record.metrics


def test_a_generator_or_toy_is_not_watched(store, caplog):
    rows = write_image_rows(store, 32)
    with toy_registered():
        train(toy.job(store, rows, None, steps=3))
    assert not [r for r in caplog.records if "collapsing" in r.getMessage()]


def toy_registered():
    import contextlib

    stack = contextlib.ExitStack()
    stack.callback(toy.install())
    return stack


def test_the_screen_shows_warnings_of_steps(capsys):
    from tokenloom.flows.screen import screen

    with screen():
        logging.getLogger("tokenloom.tasks.training.distributed").warning("%s: %s", "toy", "scale 4x4 is collapsing")
    assert "warning: toy: scale 4x4 is collapsing" in capsys.readouterr().err
    logging.getLogger("tokenloom.tasks.training.distributed").debug("nothing")

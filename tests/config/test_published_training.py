"""``train: {as: paper}``: the published training with a run's own fields, and the schedules that published trainings need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tokenloom.configs.load import load_run
from tokenloom.configs.schema import GeneratorConfig, identity
from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Method
from tokenloom.models.core.published import Training
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.tasks.training.optimizer import PhaseOptimizer
from tokenloom.tasks.training.schedule import learning_rate, weight_decay
from tokenloom.tasks.training.train_state import TrainState

SIZED = [name for name in registry.names() if any(size.training for size in registry.get(name).sizes)]


def generator(recipe: str, train: dict[str, Any], **args: Any) -> TrainSettings:
    return GeneratorConfig.model_validate({"recipe": recipe, "args": args, "train": train}).train


def test_the_published_training_is_taken_and_single_fields_win() -> None:
    plain = generator("var", {"as": "paper"}, size="d16")
    assert (plain.epochs, plain.batch, plain.optimizer.clip, plain.source) == (200, 768, 2.0, "paper")
    assert plain.optimizer.lr == pytest.approx(1e-4 * 768 / 256)
    mine = generator("var", {"as": "paper", "ema": 0.9, "optimizer": {"clip": 1.0}}, size="d16")
    assert mine == replace(plain, ema=0.9, optimizer=replace(plain.optimizer, clip=1.0))
    assert identity(plain) == identity(replace(plain, source="")), "where the numbers come from is not what they are"


def test_another_batch_rescales_the_rate_where_a_source_says_what_it_refers_to() -> None:
    smaller = generator("var", {"as": "paper", "batch": 256}, size="d16")
    assert smaller.optimizer.lr == pytest.approx(1e-4)
    assert generator("var", {"as": "paper", "batch": 256, "optimizer": {"lr": 0.5}}, size="d16").optimizer.lr == 0.5
    unsaid = Training(settings=TrainSettings(epochs=1, batch=8, optimizer=OptimizerSettings(lr=0.1)))
    assert unsaid.given({"batch": 4}, "train")["optimizer"]["lr"] == 0.1


def test_epochs_outrank_steps_and_steps_of_the_run_replace_the_papers_epochs() -> None:
    both = TrainSettings(steps=7, epochs=3, batch=4)
    assert both.on(10).steps == round(3 * 10 / 4)
    assert identity_of_steps(both) == 0
    assert generator("var", {"as": "paper", "steps": 11}, size="d16").on(1000).steps == 11
    with pytest.raises(ConfigError, match=r"train\.steps=0: must be at least 1; give steps or epochs"):
        TrainSettings()


def identity_of_steps(settings: TrainSettings) -> Any:
    return identity(settings)["steps"]


def test_what_no_source_says_has_to_be_given() -> None:
    unsaid = Training(settings=TrainSettings(epochs=1), unknown=("optimizer.lr", "batch"))
    with pytest.raises(ConfigError, match=r"generator.train.optimizer.lr: no source says"):
        unsaid.given({"batch": 4}, "generator.train")
    assert unsaid.given({"batch": 4, "optimizer": {"lr": 0.2}}, "train")["optimizer"]["lr"] == 0.2


def test_a_training_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"'var' depends on its size: give args.size"):
        generator("var", {"as": "paper"})
    assert generator("raster", {"as": "paper"}).epochs == 300, "one for all sizes"
    with pytest.raises(ValidationError, match="no training of recipe 'oar' is published"):
        generator("oar", {"as": "paper"})
    with pytest.raises(ValidationError, match="write paper"):
        generator("var", {"as": "mine"}, size="d16")


@pytest.mark.parametrize("name", SIZED)
def test_every_published_training_can_be_asked_for(name: str) -> None:
    for size in registry.get(name).sizes:
        if size.training is not None:
            given = {"as": "paper"} | unsaid(size.training)
            settings = generator(name, given, size=size.name) if registry.get(name).kind == "generator" else None
            assert settings is None or settings.on(size.training.images).steps > 0


def unsaid(training: Training) -> dict[str, Any]:
    """Values for what no source says."""
    given: dict[str, Any] = {}
    for path in training.unknown:
        inside, value = given, training.settings
        *parents, last = path.split(".")
        for parent in parents:
            inside, value = inside.setdefault(parent, {}), getattr(value, parent)
        found = getattr(value, last)
        inside[last] = [] if found is None else found
    return given


def rates(settings: OptimizerSettings, steps: int = 100) -> list[float]:
    return [learning_rate(settings, step, steps) for step in range(steps)]


def test_a_linear_schedule_holds_first() -> None:
    found = rates(OptimizerSettings(lr=1.0, warmup=0.1, warmup_from=0.5, hold=0.2, schedule="linear", final=0.1))
    assert found[0] == pytest.approx(0.55)
    assert found[9:28] == [1.0] * 19, "the warm-up's end and a fifth of the 90 steps after it"
    assert found[64] == pytest.approx(1 - 0.9 * (54 / 90 - 0.2) / 0.8)
    assert found[99] == pytest.approx(0.1, abs=0.02)


def test_drops_and_restarts_and_the_inverse_square_root() -> None:
    dropped = rates(OptimizerSettings(lr=2.0, warmup=0.0, schedule="drops", drops=((0.5, 0.2), (0.8, 0.04))))
    assert (dropped[49], dropped[50], dropped[79], dropped[80]) == (2.0, 0.4, 0.4, 0.08)
    again = rates(OptimizerSettings(lr=1.0, warmup=0.05, schedule="linear", final=0.0, restarts=(0.4,)))
    assert again[0] == again[40] == pytest.approx(0.2)
    assert again[4] == again[44] == 1.0
    assert again[39] == pytest.approx(1 / 35)
    root = rates(OptimizerSettings(lr=1.0, warmup=0.25, schedule="inverse_sqrt"))
    assert root[24] == 1.0
    assert root[99] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"restarts": (0.5, 0.2)}, "restarts"),
        ({"schedule": "drops"}, "go together"),
        ({"hold": 1.0}, "hold"),
        ({"schedule": "inverse_sqrt", "warmup": 0.0}, "warm-up"),
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerSettings(**wrong)


def test_weight_decay_moves_by_a_cosine() -> None:
    settings = OptimizerSettings(weight_decay=0.1, weight_decay_end=0.3)
    assert [weight_decay(settings, step, 100) for step in (0, 50, 100)] == pytest.approx([0.1, 0.2, 0.3])


class Two(Method):
    """A matrix and a vector, in two phases of which the second begins at step 3."""

    phases = ("main", "other")

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gain, self.other = (nn.Parameter(torch.ones(size)) for size in ((2, 2), (2,), (2, 2)))

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        raise NotImplementedError

    def phase_parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.named_parameters() if (n == "other") == (phase == "other")]

    def begins(self, phase: str) -> int:
        return 3 if phase == "other" else 0


def moved(settings: OptimizerSettings) -> dict[str, bool]:
    """Which parameters a step without a gradient moves: those that decay."""
    model = Two()
    PhaseOptimizer(model, "main", settings).step(0, 10)
    return {name: not torch.equal(p, torch.ones_like(p)) for name, p in model.named_parameters()}


def test_what_is_exempt_from_decay_is_a_setting() -> None:
    settings = OptimizerSettings(lr=0.1, weight_decay=0.1, warmup=0.0)
    assert moved(settings) == {"table": True, "gain": False, "other": False}
    assert moved(replace(settings, exempt=())) == {"table": True, "gain": True, "other": False}
    assert moved(replace(settings, exempt=("tab",))) == {"table": False, "gain": True, "other": False}


def test_plain_adam_adds_decay_to_the_gradient() -> None:
    model = Two()
    settings = OptimizerSettings(kind="adam", lr=0.1, weight_decay=0.5, warmup=0.0, schedule="constant")
    PhaseOptimizer(model, "main", settings).step(0, 10)
    # The first step of Adam is the learning rate against the gradient's sign, whatever its size.
    assert torch.allclose(model.table, torch.full((2, 2), 0.9), atol=1e-4)


def test_a_phase_has_its_own_optimizer_and_rests_until_it_begins() -> None:
    own = OptimizerSettings(lr=0.5, betas=(0.5, 0.9), weight_decay=0.2, warmup=0.0, schedule="linear", final=0.0)
    state = TrainState(Two(), TrainSettings(steps=13, phases={"other": own}))
    main, other = state.phases
    assert (main.begins, other.begins) == (0, 3)
    other.grad.fill_(1.0)
    assert other.step(3, 13) == 0.5, "its schedule starts where it starts"
    assert set(other.state()["exp_avg.other.other"].flatten().tolist()) == {0.5}, "its own betas"
    assert other.step(8, 13) == pytest.approx(0.25)
    other.load({key: view.clone() for key, view in other.state().items()}, 5)
    assert other._count.item() == 2, "resumed with the steps that it took"
    with pytest.raises(ConfigError, match=r"train.phases.third: .* phases: main, other"):
        TrainState(Two(), TrainSettings(steps=1, phases={"third": own}))


def test_a_run_file_keeps_its_identity_when_phases_and_epochs_are_not_used() -> None:
    assert "phases" not in identity(TrainSettings(steps=3))
    assert identity(TrainSettings(steps=3, phases={"other": OptimizerSettings(lr=0.5)}))["phases"]["other"]["lr"] == 0.5


def test_the_published_training_is_set_by_its_dotted_path() -> None:
    config = load_run("imagenet256_var_d16", ["generator.train.as=paper", "generator.train.ema=0.5"])
    assert config.generator is not None
    assert config.generator.train is not None
    assert (config.generator.train.source, config.generator.train.ema) == ("paper", 0.5)
    with pytest.raises(ConfigError, match=r"train\.as='mine'"):
        load_run("imagenet256_var_d16", ["generator.train.as=mine"])

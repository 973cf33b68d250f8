"""Tokenizers that depend on others: planned, trained on frozen copies, saved whole; and those that have nothing to train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from stand_ins import digits, new_store, quick_features, write_dataset
from torch import Tensor, nn
from toy_runs import run, source_fixture, stand_in  # noqa: F401

from tokenloom.configs.schema import BaseConfig, ClusterConfig, RunConfig
from tokenloom.flows import planning
from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import Config as PlainConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.tasks.modalities.image.judging.features import features
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.training.distributed import make_job, plan_tokenizer, train_model
from tokenloom.tasks.training.finishing import BATCHES, build_only
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import launch
from tokenloom.tasks.training.train_loop import train

TINY = {"codes": 16, "dim": 4, "channels": 8, "multipliers": [1, 1], "patch": 4}
CPU = ClusterConfig(execution=ExecutionSettings(workers=1, device="cpu"))


class Above(Tokenizer):
    """Brightness levels of a base's reconstruction, shifted by a learned number and by what ``finish`` has seen."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PlainConfig, tag="test.above"):
        dependencies: tuple[str, ...] = ("tokenizer", "features")
        trained: bool = True

        @property
        def needs(self) -> tuple[str, ...]:
            return self.dependencies

        def build(self, *, signal: Any, **given: Any) -> Above:
            return Above(self, signal, **given)

    def __init__(self, config: Config, signal: Any, tokenizer: Any = None, features: dict[str, Any] | None = None) -> None:
        super().__init__()
        assert (tokenizer is not None, features is not None) == ("tokenizer" in config.needs, "features" in config.needs)
        self.config = config
        self.base = tokenizer.build(signal=signal).requires_grad_(False) if tokenizer else None
        self.judge = Classifier.of(features).requires_grad_(False) if features else None
        self.shift = nn.Parameter(torch.zeros(())) if config.trained else None
        self.register_buffer("seen", torch.zeros(2))

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(grids=((1, 1),), vocabulary=256)

    def adopt(self, **roles: nn.Module) -> None:
        if self.base is not None:
            self.base.load_state_dict(roles["tokenizer"].state_dict())
        if self.judge is not None:
            self.judge.load_state_dict(roles["features"].state_dict())

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        mean = self.judge(batch.signal)[0].mean() if self.judge is not None else batch.signal.mean()
        return {"loss": (self.shift - mean).square()}

    def finish(self, batches: Iterator[Batch]) -> None:
        assert not self.training
        for batch in batches:
            self.seen += torch.stack([batch.signal.double().mean().float(), torch.ones(())])

    def encode(self, image_BCHW: Tensor) -> Tokens:
        image_BCHW = self.base.decode(self.base.encode(image_BCHW)) if self.base is not None else image_BCHW
        level_B = (image_BCHW.mean((1, 2, 3)) * 127.5 + 127.5).round().clamp(0, 255)
        return Tokens(level_B.to(torch.uint8)[:, None], self.layout)

    def decode(self, tokens: Tokens) -> Tensor:
        return (tokens.data.float() / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)


@pytest.fixture(autouse=True)
def recipes() -> Iterator[None]:
    """The recipe ``above`` for the length of a test, its needs and whether it is trained as arguments."""

    def above(needs: tuple[str, ...] = ("tokenizer", "features"), trained: bool = True) -> Above.Config:
        return Above.Config(dependencies=needs, trained=trained)

    registry.names()
    registry.register("above", kind="tokenizer", paper="-", tiny={})(above)
    yield
    del registry._RECIPES["above"]


def above(source: Path, *sets: str, base: dict[str, Any] | None = None, args: dict[str, Any] | None = None) -> RunConfig:
    config = run(source, "generator=null", *sets)
    section = {"recipe": "above", "args": args or {}, "base": base, "train": {"steps": 2, "batch": 4}}
    return RunConfig.model_validate(config.model_dump(by_alias=True) | {"tokenizer": section})


BASE = {"recipe": "vq", "args": TINY | {"patch": 1}, "train": {"steps": 3, "batch": 4}}


def names(config: RunConfig, store: Store) -> list[str]:
    return [link.step.name for link in planning.chain(config, store)]


# --- the plan -------------------------------------------------------------------------------------------------


def test_what_a_tokenizer_depends_on_comes_before_it(source: Path, store: Store) -> None:
    rest = ["train_tokenizer", "extract", "evaluate"]
    assert names(above(source, base=BASE), store) == ["ingest", "train_base", "features", *rest]
    assert names(above(source, args={"needs": ["features"]}), store) == ["ingest", "features", *rest]
    alone = ["ingest", "train_base", "train_tokenizer", "extract", "features", "evaluate"]
    assert names(above(source, base=BASE, args={"needs": ["tokenizer"]}), store) == alone


def test_a_fingerprint_covers_both_inputs(source: Path, store: Store) -> None:
    from toy_runs import complete, ran

    config = above(source, base=BASE)
    made = complete(config, store)
    assert ran(config, store) == []
    assert store.record(made["tokenizer"]).inputs == {role: made[role] for role in ("dataset", "base", "features")}
    assert made["base"].kind == "tokenizer"
    assert made["base"].name == "toy-base"
    other = above(source, base=BASE | {"args": BASE["args"] | {"codes": 8}})
    assert ran(other, store) == ["train_base", "train_tokenizer", "extract", "evaluate"]


def test_a_base_is_the_tokenizer_that_another_run_trains(source: Path, store: Store) -> None:
    from toy_runs import complete

    plain = RunConfig.model_validate(run(source, "generator=null").model_dump(by_alias=True) | {"tokenizer": BASE})
    trained = complete(plain, store)["tokenizer"]
    for base in (BASE, {"use": trained.id}):
        plan = {one.name: one for one in planning.plan(above(source, base=base), store)}
        assert plan["train_base"].status == "cached"
        assert plan["train_base"].artifact == trained


@pytest.mark.parametrize(
    ("base", "args", "message"),
    [
        (None, {}, r"tokenizer: recipe 'above' depends on another tokenizer, and tokenizer\.base is missing"),
        (BASE, {"needs": []}, r"tokenizer\.base: recipe 'above' depends on no other tokenizer; leave base out"),
        ({"recipe": "above"}, {}, r"tokenizer\.base: recipe 'above' depends on other models itself \(tokenizer, features\)"),
        ({"recipe": "vqq"}, {}, r"tokenizer\.base: unknown tokenizer recipe 'vqq'"),
        ({"use": "nothing"}, {}, r"tokenizer\.base\.use: "),
        (BASE | {"train": None}, {}, r"tokenizer\.base\.train is missing: give at least \{steps: N\}"),
        (BASE, {"trained": False}, r"tokenizer\.train: recipe 'above' has nothing to train; leave tokenizer\.train out"),
    ],
)
def test_what_cannot_stand_is_said_before_any_work(source: Path, store: Store, base: Any, args: Any, message: str) -> None:
    config = above(source, base=base, args=args)
    with pytest.raises(ConfigError, match=message):
        planning.check(config, store, planning.plan(config, store))


def test_a_base_of_images_of_another_size(source: Path, store: Store) -> None:
    spec = {"kind": "tokenizer", "recipe": "vq", "args": TINY, "set": {}, "given": {"signal": signals.image(16, 1).to_dict()}}
    from tokenloom.tasks.store.artifacts import StepSpec

    stand_in(StepSpec("train_tokenizer", 1, "tokenizer", "other", {}, {}), store, {"spec": spec})
    config = above(source, base={"use": "other"})
    with pytest.raises(ConfigError, match=r"tokenizer\.base\.use='other'.*made for shape 16x16, the data has 8x8"):
        planning.check(config, store, planning.plan(config, store))


def test_a_tokenizer_that_needs_training_says_so(source: Path, store: Store) -> None:
    config = run(source, "tokenizer.train=null")
    with pytest.raises(ConfigError, match=r"tokenizer\.train is missing: give at least \{steps: N\}"):
        planning.check(config, store, planning.plan(config, store))


# --- the work -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """A dataset of digits with its features and a tokenizer that others can depend on."""

    store: Store
    dataset: Artifact
    features: Artifact
    base: Artifact


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    from stand_ins import write_tokenizer

    store, (image, label) = new_store(tmp_path_factory.mktemp("standing")), digits()
    dataset = write_dataset(store, image[:80], label[:80], held_out=16)
    return Ground(store, dataset, features(quick_features(dataset), store).artifact, write_tokenizer(store, dataset, recipe="vq"))


def step_of(ground: Ground, **train: Any) -> Any:
    settings = TrainSettings(**({"steps": 3, "batch": 8, "ema": 0.5} | train)) if train.get("steps") != 0 else None
    section = BaseConfig(recipe="above", args={"trained": settings is not None}, train=settings)
    return plan_tokenizer("above", section, ground.dataset, ground.store, ground.base, ground.features)


def job_of(ground: Ground, folder: str = "", **train: Any) -> TrainJob:
    job, _ = make_job(step_of(ground, **train), ground.store, CPU)
    return replace(job, folder=folder or job.folder)


def two(paths: str, rank: int, world: int) -> None:
    toy.worker(paths, rank, world)


def test_it_trains_on_frozen_copies_and_is_saved_whole(ground: Ground) -> None:
    job = job_of(ground)
    train(job)
    model, spec = load_model(Path(ground.store.storage.local_path(job.folder)))
    base = load_model(ground.store.fetch(ground.base))[0]
    assert all(torch.equal(value, model.base.state_dict()[name]) for name, value in base.state_dict().items())
    judge = Classifier.of(spec.given["features"])
    judge.load_state_dict(model.judge.state_dict())
    assert judge(torch.zeros(1, 1, 32, 32))[1].shape == (1, 10)
    assert model.shift != 0
    assert spec.given["tokenizer"]["recipe"] == "vq"


def test_finish_sees_the_first_batches_once_and_shapes_what_is_saved(ground: Ground) -> None:
    from tokenloom.tasks.data.loader import Loader, indices

    job = job_of(ground, "tokenizer/finish-1")
    train(job)
    weights = load_model(Path(ground.store.storage.local_path(job.folder)))[0]
    loader = Loader(job.rows, ground.store.cache)
    means = [loader.get(indices(0, i, 8, 64)).signal.double().mean() for i in range(8)]
    assert weights.seen[1] == 8  # 64 rows are 8 batches, fewer than the most there may be
    assert BATCHES == 64
    torch.testing.assert_close(weights.seen[0].double(), torch.stack(means).sum(), atol=1e-5, rtol=0)
    train(job)  # killed after its last step: the end is done again, from the same state
    assert torch.equal(load_model(Path(ground.store.storage.local_path(job.folder)))[0].seen, weights.seen)


def test_two_workers_finish_alike(ground: Ground, tmp_path: Path) -> None:
    jobs = [job_of(ground, f"tokenizer/workers-{world}") for world in (1, 2)]
    for world, job in zip((1, 2), jobs):
        launch(world, _train, json.dumps(asdict_of(job)), method="fork")
    one, both = (load_model(Path(ground.store.storage.local_path(job.folder)))[0] for job in jobs)
    assert one.seen[1] == 8
    assert torch.equal(one.seen, both.seen)
    torch.testing.assert_close(one.shift, both.shift, atol=1e-6, rtol=0)


def asdict_of(job: TrainJob) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(job), "rows": job.rows.to_dict(), "validation": job.validation and job.validation.to_dict()}


def _train(text: str, rank: int, world: int) -> None:
    path = Path(json.loads(text)["root"]) / f"job-{world}-{rank}.json"
    path.write_text(text)
    train(toy.from_file(path), rank, world)


def test_a_tokenizer_with_nothing_to_train_is_built_without_workers(ground: Ground) -> None:
    step = step_of(ground, steps=0)
    outcome = train_model(step, ground.store, CPU)
    record = ground.store.record(outcome.artifact)
    assert (outcome.status, record.metrics["steps"], record.notes["parameters"]) == ("ran", 0, 0)
    model = load_model(ground.store.fetch(outcome.artifact))[0]
    assert model.seen[1] == 1  # 64 rows are one batch of the default size
    assert record.notes["layout"]["tokenizer"] == outcome.artifact.fingerprint
    assert train_model(step, ground.store, CPU).status == "cached"


def test_without_train_a_tokenizer_with_weights_is_refused(ground: Ground) -> None:
    section = BaseConfig(recipe="above", args={"trained": True})
    step = plan_tokenizer("above", section, ground.dataset, ground.store, ground.base, ground.features)
    with pytest.raises(ConfigError, match=r"train is missing"):
        train_model(step, ground.store, CPU)


def test_a_role_that_nothing_has_is_named_before_any_work(ground: Ground) -> None:
    step = step_of(ground)
    step = replace(step, inputs={name: artifact for name, artifact in step.inputs.items() if name != "features"})
    with pytest.raises(ConfigError, match=r"'above' needs a trained model in the role 'features' and was given tokenizer: add the step"):
        make_job(step, ground.store, CPU)
    job = job_of(ground)
    assert job.adopt is not None
    with pytest.raises(ConfigError, match="in the role 'features'"):
        build_only(replace(job, adopt={"tokenizer": job.adopt["tokenizer"]}))


def test_a_base_that_is_gone_is_named(ground: Ground) -> None:
    from tokenloom.tasks.runtime.errors import StepError

    job = job_of(ground)
    assert job.adopt is not None
    job = replace(job, adopt=job.adopt | {"tokenizer": "tokenizer/none-000000000000"})
    with pytest.raises(StepError, match=r"none-000000000000: no saved model, model\.json is missing"):
        build_only(job)

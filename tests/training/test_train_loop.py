"""The training loop: same numbers for any number of workers, same bits after any kill, clear stops."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from forks import Started
from image_rows import write_image_rows
from safetensors.torch import load_file

from tokenloom.models.core import signals
from tokenloom.models.core.build import parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import OptimizerSettings
from tokenloom.tasks.data.loader import Rows
from tokenloom.tasks.runtime.errors import Preempted, StepError
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training import train_loop
from tokenloom.tasks.training.checkpoint import Checkpoints, fetch_model
from tokenloom.tasks.training.curves import CurveWriter, Tail, read_curves
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.optimizer import PhaseOptimizer, learning_rate
from tokenloom.tasks.training.train_loop import train
from tokenloom.tasks.training.verdict import verdict

ImageRows = Callable[..., Rows]


@pytest.fixture(autouse=True)
def _zoo() -> Iterator[None]:
    remove = toy.install()
    yield
    remove()


@pytest.fixture
def data(image_rows: ImageRows) -> tuple[Rows, Rows]:
    return image_rows(150), image_rows(70, split="validation")


def losses(store: Store, job: TrainJob) -> np.ndarray:
    """Every loss of every step of a finished run, (steps, phases)."""
    return np.array([[row["loss"], row["discriminator/loss"]] for row in read_curves(store.storage, job.folder)])


def weights(store: Store, job: TrainJob) -> bytes:
    return store.storage.read(f"{job.folder}/weights.safetensors")


def run(world: int, tmp_path: Path, *jobs: TrainJob) -> None:
    """Train jobs in ``world`` processes (starting them takes most of the time, so one start serves several jobs)."""
    toy.run_alone(world, *(toy.to_file(job, tmp_path / f"{job.fingerprint}.json") for job in jobs))


def test_any_number_of_workers_sees_the_same_batches_and_draws(store, data, tmp_path) -> None:
    curves = {}
    for world, micros in ((1, (0, 7)), (2, (0,)), (3, (0, 5))):
        cases = {(p, m): steps for m in micros for p, steps in (("float64", 50), ("float32", 10))}
        jobs = {
            (p, m): toy.job(store, *data, folder=f"tokenizer/toy-{p}{world}{m}", steps=steps, precision=p, micro_batch=m)
            for (p, m), steps in cases.items()
        }
        run(world, tmp_path, *jobs.values())
        for (precision, micro), job in jobs.items():
            validated = read_curves(store.storage, job.folder)[-1]["validation_loss"]
            curves[precision, world, micro] = np.append(losses(store, job).ravel(), validated)
    for (precision, world, micro), curve in curves.items():
        whole = curves[precision, 1, 0]
        bound, steps = (1e-6, 50) if precision == "float64" else (1e-4, 10)
        assert len(curve) == len(whole) == 2 * steps + 1
        assert np.ptp(whole[:-1:2]) > 0.01, "the model learns nothing, so nothing is compared"
        assert np.abs(curve / whole - 1).max() <= bound, (precision, world, micro)


def test_the_gradient_is_that_of_the_global_mean(store, data) -> None:
    """One step of 3 micro-batches of unequal size moves the weights as one step of the whole batch does."""
    whole = toy.job(store, *data, folder="tokenizer/toy-a", steps=1, batch=10, precision="float64")
    parts = toy.job(store, *data, folder="tokenizer/toy-b", steps=1, batch=10, precision="float64", micro_batch=4)
    train(whole), train(parts)
    first, second = (load_file(str(store.storage.local_path(f"{j.folder}/weights.safetensors"))) for j in (whole, parts))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_killed_at_any_moment_it_ends_with_the_same_bits(store, data, tmp_path, world) -> None:
    options = {"steps": 60, "checkpoint_every": 7, "validate_every": 10, "log_every": 5, "ema": 0.9, "workers": world}
    straight = toy.job(store, *data, folder="tokenizer/toy-straight", **options)
    run(world, tmp_path, straight)
    broken = toy.job(store, *data, folder="tokenizer/toy-broken", **options)
    random = np.random.default_rng(world)
    path = toy.to_file(broken, tmp_path / "broken.json")
    kills, resumed = 0, set()
    while kills < 3:
        process = toy.start_alone(world, path)
        before = len(read_curves(store.storage, broken.folder))
        target = random.integers(1, 14)  # rows of metrics to wait for, and then a random moment
        while process.poll() is None and len(read_curves(store.storage, broken.folder)) < before + target / 5:
            time.sleep(0.002)
        time.sleep(float(random.uniform(0, 0.03)))
        if process.poll() is not None:
            break
        process.kill()
        kills += 1
        resumed.add(Checkpoints(store.storage, broken.folder, broken.fingerprint, store.root).newest())
    assert kills, "the run ended before it could be killed"
    toy.run_alone(world, path)
    assert weights(store, broken) == weights(store, straight)
    a, b = (read_curves(store.storage, j.folder)[-1] for j in (straight, broken))
    assert a["loss"] == b["loss"]
    assert a["validation_loss"] == b["validation_loss"]


def test_stop_checkpoints_at_once_and_the_rest_is_the_same(store, data) -> None:
    straight, broken = (toy.job(store, *data, folder=f"tokenizer/toy-{n}", steps=20, checkpoint_every=50) for n in ("s", "b"))
    train(straight)
    steps: list[int] = []
    with pytest.raises(Preempted, match="step 8 of 20"):
        train(broken, report=lambda row: steps.append(row["step"]), stop=lambda: len(steps) >= 7)
    metrics = train(broken)
    assert metrics["resumed_from"] == 8
    assert weights(store, broken) == weights(store, straight)


def test_a_checkpoint_that_was_cut_short_or_changed_is_not_used(store, data) -> None:
    job = toy.job(store, *data, steps=12, checkpoint_every=4)
    train(job)
    straight = weights(store, job)
    store.storage.delete(f"{job.folder}/weights.safetensors")
    for step, damage in ((12, b""), (8, None)):
        path = f"{job.folder}/checkpoints/step-{step:07d}/state.safetensors"
        content = bytearray(store.storage.read(path))
        content[-1] ^= 1
        store.storage.write(path, bytes(content) if damage is None else damage)
    kept = Checkpoints(store.storage, job.folder, job.fingerprint, store.root)
    assert kept.newest() == 0
    assert train(job)["resumed_from"] == 0
    assert weights(store, job) == straight
    # One whose marker is missing, because the process died before it was written.
    store.storage.delete(f"{job.folder}/checkpoints/step-0000012/state.json")
    assert kept.newest() == 8
    assert Checkpoints(store.storage, job.folder, "another recipe", store.root).newest() == 0


def test_checkpoints_keep_last_best_and_every_nth(store) -> None:
    kept = Checkpoints(store.storage, "tokenizer/x", "x", store.root / "scratch", keep=2, keep_every=40)
    for step, loss in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, None), (60, 2.2), (70, None)):
        kept.save(step, {"w": torch.full((3,), float(step))}, 1, loss)
    assert [s.step for s in kept.saved()] == [20, 40, 60, 70]
    best = kept.best()
    assert best is not None
    assert best.step == 20
    assert kept.load(70)["w"].tolist() == [70.0] * 3
    kept.keep_last()  # of a training that ended
    assert [s.step for s in kept.saved()] == [40, 70]


def test_nan_stops_with_step_phase_and_checkpoint(store, data) -> None:
    job = toy.job(store, *data, steps=20, checkpoint_every=5, args={"nan_at": 12})
    with pytest.raises(StepError) as error:
        train(job)
    message = str(error.value)
    assert "step 13" in message
    assert "'autoencoder'" in message
    assert "loss = nan" in message
    assert "checkpoints/step-0000010" in message
    kept = Checkpoints(store.storage, job.folder, job.fingerprint, store.root)
    assert kept.newest() == 10
    assert all(torch.isfinite(t).all() for t in kept.load(10).values() if t.is_floating_point())
    assert read_curves(store.storage, job.folder)[-1]["step"] >= 10


def test_workers_that_differ_are_found_out(store, data, tmp_path) -> None:
    job = toy.job(store, *data, steps=4, checkpoint_every=2)
    started = Started(toy.differing, 2, str(toy.to_file(job, tmp_path / "job.json")))
    assert started.wait() == 1
    assert "workers [1] hold other weights or buffers" in started.said()


def test_more_workers_than_rows_is_refused(store, data, tmp_path) -> None:
    job = toy.job(store, *data, batch=1)
    with pytest.raises(StepError, match=r"parallel\.launch"):
        train(job, 0, 2)
    started = toy.start_alone(2, toy.to_file(job, tmp_path / "job.json"))
    assert started.wait() == 1
    assert "smaller than the number of workers" in started.said()


def test_validation_is_the_mean_over_all_rows_with_fixed_draws(store, data) -> None:
    job = toy.job(store, *data, steps=6, validate_every=2, lr=1e-12, batch=16)
    train(job)
    seen = [row["validation_loss"] for row in read_curves(store.storage, job.folder) if "validation_loss" in row]
    assert len(seen) == 3
    assert max(seen) - min(seen) < 1e-2, "the buffer moves a little, the draws do not"
    other = toy.job(store, *data, steps=6, validate_every=2, lr=1e-12, batch=16, seed=4, folder="tokenizer/toy-other")
    train(other)
    assert read_curves(store.storage, other.folder)[-1]["validation_loss"] != seen[-1]


@pytest.mark.parametrize("world", [1, 2])
def test_a_model_may_return_any_number_of_metrics(store, image_rows, tmp_path, world) -> None:
    rows = (image_rows(40), image_rows(1, split="validation"))  # of two workers, one validates nothing
    options = {"steps": 2, "batch": 16, "micro_batch": 3, "validate_every": 2, "ema": 0.5}
    few = toy.job(store, *rows, folder="tokenizer/toy-few", **options)
    many = toy.job(store, *rows, folder="tokenizer/toy-many", args={"metrics": 200}, **options)
    run(world, tmp_path, few, many)
    rows_few, rows_many = (read_curves(store.storage, job.folder) for job in (few, many))
    for prefix, row in (("", rows_many[0]), ("", rows_many[1]), ("validation/", rows_many[1])):
        assert [row[f"{prefix}more_{i:04d}"] for i in range(200)] == pytest.approx(list(range(200)), rel=1e-5)
        assert row[f"{prefix}square"] == pytest.approx(rows_few[row["step"] - 1][f"{prefix}square"], rel=1e-6)
    assert rows_many[1]["validation_loss"] == pytest.approx(rows_few[1]["validation_loss"], rel=1e-6)
    first, second = (load_file(str(store.storage.local_path(f"{job.folder}/weights.safetensors"))) for job in (few, many))
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)


def test_metrics_previews_and_weights_are_there(store, data) -> None:
    rows: list[dict] = []
    job = toy.job(store, *data, steps=10, log_every=5, sample_every=5)
    metrics = train(job, report=rows.append)
    assert [row["step"] for row in rows] == [1, 5, 10]
    assert {"loss", "square", "lr", "gradient_norm", "discriminator/loss", "centre", "images_per_second"} <= rows[0].keys()
    assert {"loss", "validation_loss", "best_validation_loss", "parameters", "workers"} <= metrics.keys()
    names = {path.removeprefix(f"{job.folder}/") for path, _ in store.storage.list(job.folder)}
    assert {"weights.safetensors", "model.json", "metrics/0000001.jsonl", "previews/step-0000010.png"} <= names
    from tokenloom.models.core.build import load_model

    model, spec = load_model(store.storage.local_path(job.folder))
    assert spec.recipe == "toy"
    assert parameters(model) == metrics["parameters"]
    assert train(job)["loss"] == metrics["loss"], "a second run repeats nothing and knows the end"


def test_ema_is_what_is_exported(store, data) -> None:
    job = toy.job(store, *data, steps=15, ema=0.5)
    train(job)
    exported = load_file(str(store.storage.local_path(f"{job.folder}/weights.safetensors")))
    state = Checkpoints(store.storage, job.folder, job.fingerprint, store.root).load(15)
    assert torch.equal(exported["decode.weight"], state["ema.autoencoder.decode.weight"])
    assert not torch.equal(exported["decode.weight"], state["model.decode.weight"])
    assert torch.equal(exported["centre"], state["model.centre"])


def test_the_best_weights_are_kept_where_a_run_says_so(store, data, monkeypatch) -> None:
    found = {3: 2.0, 6: 1.0, 9: 1.5, 12: 1.2}

    def validate(run) -> dict[str, float]:
        run.validated = (run.step, found[run.step])
        return {"validation_loss": found[run.step]}

    monkeypatch.setattr(train_loop._Run, "validate", validate)
    options = {"steps": 12, "validate_every": 3, "checkpoint_every": 4}
    jobs = [toy.job(store, *data, folder=f"tokenizer/toy-{keep}", keep=keep, **options) for keep in ("last", "best")]
    last, best = (train(job) for job in jobs)
    assert (last["kept_step"], best["kept_step"], best["best_step"], best["steps"]) == (12, 6, 6, 12)
    kept = Checkpoints(store.storage, jobs[1].folder, jobs[1].fingerprint, store.root)
    weights_of = [load_file(str(store.storage.local_path(f"{job.folder}/weights.safetensors")))["decode.weight"] for job in jobs]
    assert torch.equal(weights_of[1], kept.load(6)["model.decode.weight"])
    assert not torch.equal(*weights_of)
    assert "the weights of step" in verdict(best)
    assert "(over-fitting); the last weights were kept (train.keep: best would take" in verdict(last)
    assert train(jobs[1])["kept_step"] == 6, "finished again, the same is taken"


@pytest.mark.parametrize(
    ("best", "last", "said"),
    [
        (1.0, 1.0, ""),
        (1.0, 1.005, "best at step 6 of 10: 1, and 1.005 at the end; the last"),
        (1.0, 1.2, "1.2 at the end (over-fitting); the last"),
    ],
)
def test_the_verdict_names_over_fitting(best: float, last: float, said: str) -> None:
    found = verdict({"best_validation_loss": best, "best_step": 6, "validation_loss": last, "steps": 10})
    assert said in found
    assert bool(said) == bool(found)
    assert verdict({"steps": 10}) == ""


def test_bfloat16_trains(store, data) -> None:
    job = toy.job(store, *data, steps=30, precision="bfloat16")
    train(job)
    curve = losses(store, job)[:, 0]
    assert curve[-1] < curve[0]


def test_flat_adamw_is_adamw() -> None:
    """The flat fused optimizer does what torch's own does on separate tensors, decay groups and clipping included."""
    settings = OptimizerSettings(lr=0.05, weight_decay=0.3, clip=0.5, warmup=0.0, schedule="constant")
    torch.manual_seed(0)
    model = toy.toy(width=5).build(signal=signals.image(4, 1))
    twin = toy.toy(width=5).build(signal=signals.image(4, 1))
    twin.load_state_dict(model.state_dict())
    phase = PhaseOptimizer(model, "autoencoder", settings)
    theirs = dict(twin.phase_parameters("autoencoder"))
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in theirs.items() if not twin.no_decay(n, p)], "weight_decay": 0.3},
            {"params": [p for n, p in theirs.items() if twin.no_decay(n, p)], "weight_decay": 0.0},
        ],
        lr=0.05,
        betas=settings.betas,
    )
    for step in range(4):
        phase.clear()
        for name, parameter in phase.parameters.items():
            gradient = torch.randn(parameter.shape)
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
            theirs[name].grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        torch.testing.assert_close(phase.clip(), norm)
        phase.step(step, 4)
        reference.step()
    for name, parameter in phase.parameters.items():
        torch.testing.assert_close(parameter, theirs[name], msg=name)


def test_learning_rate_is_a_function_of_the_step() -> None:
    cosine = OptimizerSettings(lr=1.0, warmup=0.1, final=0.2)
    assert learning_rate(cosine, 0, 100) == pytest.approx(0.1)
    assert learning_rate(cosine, 9, 100) == pytest.approx(1.0)
    assert learning_rate(cosine, 55, 100) == pytest.approx(0.6)
    assert learning_rate(cosine, 99, 100) == pytest.approx(0.2, abs=1e-3)
    assert learning_rate(replace(cosine, schedule="linear"), 55, 100) == pytest.approx(0.6)
    assert learning_rate(replace(cosine, schedule="constant"), 70, 100) == 1.0


def test_a_parameter_in_two_phases_is_refused(store, data, monkeypatch) -> None:
    monkeypatch.setattr(toy.Toy, "phase_parameters", lambda self, phase: list(self.named_parameters()))
    with pytest.raises(ConfigError, match="in two phases"):
        train(toy.job(store, *data))


def test_curves_give_each_step_once_and_the_later_chunk_counts(store) -> None:
    tail = Tail(store.storage, "tokenizer/x")
    first = CurveWriter(store.storage, "tokenizer/x", every=0.0)
    for step in (1, 2, 3):
        first.add({"step": step, "loss": 1.0})
    assert [row["step"] for row in tail.new()] == [1, 2, 3]
    assert tail.new() == []
    again = CurveWriter(store.storage, "tokenizer/x", every=1e9)
    again.add({"step": 3, "loss": 2.0})
    again.add({"step": 4, "loss": 2.0})
    again.flush()
    assert [row["step"] for row in tail.new()] == [4]
    rows = read_curves(store.storage, "tokenizer/x")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    store.storage.write("tokenizer/x/metrics/0000005.jsonl", json.dumps({"step": 5, "loss": math.inf}).encode() + b'\n{"st')
    assert [row["step"] for row in tail.new()] == [5]


def test_object_storage_holds_the_same_run(s3, root, image_rows, data) -> None:
    """Checkpoints, metrics, weights and the fetched model on S3: the bits are those of a run on local disk."""
    local = Store(str(root / "store"), root)
    at_home = toy.job(local, *data, steps=10, checkpoint_every=4)
    train(at_home)
    remote = Store(f"{s3}/training", root)
    rows = (write_image_rows(remote, 150), write_image_rows(remote, 70, split="validation"))
    away = toy.job(remote, *rows, steps=10, checkpoint_every=4)
    steps: list[int] = []
    with pytest.raises(Preempted):
        train(away, report=lambda row: steps.append(row["step"]), stop=lambda: len(steps) >= 6)
    assert train(away)["resumed_from"] == 7
    assert weights(remote, away) == weights(local, at_home)
    assert [row["loss"] for row in read_curves(remote.storage, away.folder)] == list(losses(local, at_home)[:, 0])
    fetched = fetch_model(remote.storage, away.folder, root)
    expected = load_file(str(local.storage.local_path(f"{at_home.folder}/weights.safetensors")))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fetched.state_dict().items())
    with pytest.raises(StepError, match="no saved model"):
        fetch_model(remote.storage, "tokenizer/missing-0", root)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(store, data, tmp_path) -> None:
    """The process dies at each moment of the third checkpoint: before the tensors, between them and the marker, in the pruning."""
    options = {"steps": 12, "checkpoint_every": 3}
    straight = toy.job(store, *data, folder="tokenizer/toy-straight", **options)
    train(straight)
    for number, (verb, name) in enumerate((("upload", "state.safetensors"), ("write", "state.json"), ("delete", "state.json"))):
        broken = toy.job(store, *data, folder=f"tokenizer/toy-{number}", **options)
        died = Started(toy.dying, verb, name, str(toy.to_file(broken, tmp_path / f"{number}.json")))
        assert died.wait() == -signal.SIGKILL, died.said()
        # Pruning starts with the third checkpoint, after its marker is there.
        assert Checkpoints(store.storage, broken.folder, broken.fingerprint, store.root).newest() == (9 if verb == "delete" else 6)
        train(broken)
        assert weights(store, broken) == weights(store, straight), (verb, name)

"""The steps ``train_tokenizer`` and ``train_generator``: planned here, carried out by Ray Train, kept as artifacts.

The loop itself is ``tasks/training/train_loop.py``, which knows nothing of Ray; one worker or many, laptop or cluster, it is the same path.
Ray restarts workers that die, our checkpoints say where to go on.
"""

from __future__ import annotations

import json
import logging
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tokenloom.configs.schema import ClusterConfig, GeneratorConfig, MethodConfig, SampleConfig, identity
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.costs.counting import Counting
from tokenloom.tasks.costs.took import TOOK, noted
from tokenloom.tasks.data.loader import Rows
from tokenloom.tasks.modalities import signal_of
from tokenloom.tasks.runtime.checks import check_sharding, check_training, check_warm_start
from tokenloom.tasks.runtime.cluster import check_room, node_root, session, worker_root
from tokenloom.tasks.runtime.errors import ArtifactError, Preempted, StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.runtime.stopping import STOP_FILE, noted_signals, stop_requested
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work
from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.checkpoint import keep_last
from tokenloom.tasks.training.collapse import WARNINGS, found
from tokenloom.tasks.training.curves import BEGUN, Tail, numbers, read_curves
from tokenloom.tasks.training.plans import others_of, plan_training, roles_of
from tokenloom.tasks.training.plans import plan_tokenizer as plan_tokenizer
from tokenloom.tasks.training.trainer import trainer_of
from tokenloom.tasks.training.verdict import verdict

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.tracker import Run, Tracker
    from tokenloom.tasks.training.job import TrainJob

log = logging.getLogger(__name__)

_FAILURE, _PLAN, _RESULT = "failure.json", "plan.json", "result.json"


def plan_generator(
    name: str,
    config: MethodConfig | GeneratorConfig,
    tokens: Artifact,
    tokenizer: Artifact,
    store: Store,
    warm_start: Artifact | None = None,
    sample: SampleConfig | None = None,
) -> StepSpec:
    """The step that trains a generator on tokens, from fresh weights or from those of another generator.

    ``sample``, how the run samples, is noted, so that a generator in training is sampled in the same way; it shapes no weights.

    Raises:
        ConfigError: unknown recipe, argument or path, a value that does not fit, or tokens of another tokenizer.
    """
    start = {} if warm_start is None else {"warm_start": warm_start}
    try:
        made_by = store.record(tokens).inputs["tokenizer"].fingerprint
    except (ArtifactError, KeyError):
        made_by = tokenizer.fingerprint  # still to be made
    if made_by != tokenizer.fingerprint:
        raise ConfigError(f"tokens {tokens.id} were made by tokenizer {made_by}, not by {tokenizer.id}: extract them again")
    inputs = {"tokens": tokens, "tokenizer": tokenizer, **start}
    spec = plan_training("generator", name, config.recipe or "", config.args, config.set, config.train, inputs)
    return spec if sample is None else replace(spec, notes={**spec.notes, "sample": identity(sample)})


def train_model(step: StepSpec, store: Store, cluster: ClusterConfig, tracker: Tracker | None = None, report: Report = silent) -> Outcome:
    """Carry out a planned training, or find its artifact.

    Raises:
        StepError: a loss that is not finite, a damaged input, or workers that fail more often than ``max_failures``.
        Preempted: SIGTERM; the state is saved (KeyboardInterrupt for Ctrl-C).
    """
    outcome = keep_last(step, store, store.execute(step, lambda work: _body(step, store, cluster, tracker, report, work)))
    return replace(outcome, told=verdict(outcome.metrics)) if outcome.status == "ran" else outcome


def _body(step: StepSpec, store: Store, cluster: ClusterConfig, tracker: Tracker | None, report: Report, work: Work) -> dict[str, Any]:
    job, notes = make_job(step, store, cluster)
    for marker in (STOP_FILE, _FAILURE, _RESULT):
        work.storage.delete(f"{work.folder}/{marker}")
    steps = job.settings.steps if step.notes["train"] else 0
    work.storage.write(f"{work.folder}/{BEGUN}", json.dumps({"step": step.step, "steps": steps, "name": step.name}).encode())
    if step.kind in ("generator", "density"):  # a run that still trains can be sampled
        data = step.inputs["dataset"] if "dataset" in step.inputs else store.record(step.inputs["tokens"]).inputs["dataset"]
        plan = {"spec": job.spec, "classes": notes["classes"], "dataset": data.to_dict()}
        plan |= {"tokenizer": step.inputs["tokenizer"].to_dict()} if "tokenizer" in step.inputs else {}
        plan |= {"texts": notes["texts"]} if "texts" in notes else {}
        plan |= {"sample": step.notes["sample"]} if "sample" in step.notes else {}
        work.storage.write(f"{work.folder}/{_PLAN}", json.dumps(plan).encode())
    with tracker.track(step, work.uri) if tracker else nullcontext(None) as run:
        if step.notes["train"] is None:
            from tokenloom.tasks.training.finishing import build_only

            metrics = build_only(replace(job, root=str(store.root)))
        else:
            metrics = _fit(job, step, store, cluster, run, report)
            notes[TOOK] = noted(metrics, job.settings, metrics.pop("planned", {}))
        for path, _ in work.storage.list(f"{work.folder}/previews"):
            if run is not None:
                run.picture(Path(path).stem, work.storage.read(path))
    for path, _ in work.storage.list(work.folder):
        inside = path.removeprefix(f"{work.folder}/")
        if inside in ("weights.safetensors", "model.json") or inside.startswith(("metrics/", "previews/")):
            work.add_file(path)
    work.storage.delete(f"{work.folder}/{BEGUN}")
    if warnings := found(read_curves(work.storage, work.folder)):
        notes["warnings"] = sorted(warnings.values())
    work.notes |= notes | {"spec": job.spec, "parameters": metrics["parameters"], "world_size": metrics["workers"]}
    return metrics


def make_job(step: StepSpec, store: Store, cluster: ClusterConfig) -> tuple[TrainJob, dict[str, Any]]:
    """What the workers need for a planned step, and what its record notes.

    Raises:
        ArtifactError: an input is not complete.
        ConfigError: no training rows, more workers than rows of a batch, or a tokenizer without ``train`` that has to be trained.
    """
    from tokenloom.tasks.data.conditions import example_texts, with_conditions
    from tokenloom.tasks.serving.request import ConditionSpec
    from tokenloom.tasks.training.job import TrainJob

    noted = step.notes
    spec = ModelSpec(step.kind, noted["recipe"], noted["args"], noted["set"])
    source = store.record(step.inputs["tokens" if step.kind == "generator" else "dataset"])
    data, views = source.notes, len(source.config.get("views", ["plain"]))
    notes: dict[str, Any] = {"classes": data["classes"]}
    roles, start, fresh = roles_of(step), step.inputs.get("warm_start"), tuple(step.config.get("fresh", ()))
    adopt = {role: artifact.folder for role, artifact in roles.items()} | ({"warm_start": start.folder} if start else {})
    spec = replace(spec, given=_given(step.kind, data, roles, store), resolved=step.config["config"])
    spec.check_roles(roles)
    if start is not None:
        check_warm_start(spec, ModelSpec.from_dict(store.record(start).notes["spec"]), start.id, fresh)
    if step.kind == "tokenizer":
        model = spec.build()
        check_training(model, spec.recipe, noted["train"], step.step)
        layout = getattr(model, "layout")  # noqa: B009 - Method has none, a tokenizer does
        notes["layout"] = {**layout.to_dict(), "tokenizer": step.fingerprint}
    settings = settings_of(noted["train"]) if noted["train"] else TrainSettings(steps=1)
    workers = cluster.execution.workers
    if noted["train"] and settings.batch < workers:
        raise ConfigError(f"train.batch={settings.batch} is smaller than workers={workers}: use fewer workers or a larger batch")
    sharded = cluster.execution.sharding == "fsdp" and workers > 1 and step.kind == "generator"
    if sharded:
        check_sharding(spec, cluster.execution)
    notes["sharding"] = "fsdp" if sharded else "ddp"
    splits = {split: Rows.of(data, store.uri, split) for split in ("train", "validation")}
    if step.kind == "generator":
        condition_spec = ConditionSpec.of(spec)
        splits = {split: with_conditions(rows, condition_spec) for split, rows in splits.items()}
        if condition_spec.texted:
            notes["texts"] = example_texts(splits["train"], store)
    if not splits["train"].shards:
        raise ConfigError("the training split is empty: lower data.validation or give more images")
    settings = settings.on(len(splits["train"]) // views)  # an epoch sees each item once, in whatever view
    validation = splits["validation"] if splits["validation"].shards else None
    if settings.keep == "best" and validation is None:
        raise ConfigError("train.keep=best: there are no held-out items to tell the best by; set data.validation, or keep: last")
    root, execution = worker_root(cluster, store.root), cluster.execution
    data_of = (splits["train"], validation, store.uri, step.folder, root)
    job = TrainJob(spec.to_dict(), settings, execution, *data_of, adopt, step.fingerprint, fresh)
    return job, notes


def _given(kind: str, data: dict[str, Any], roles: dict[str, Artifact], store: Store) -> dict[str, Any]:
    """What the data and the models that it depends on give to a model that is built (``ModelSpec.given``)."""
    given: dict[str, Any]
    if kind == "generator":
        given = {"layout": data["layout"], "classes": len(data["classes"])}
    else:
        given = {"signal": signal_of(data)}
        given |= {"classes": len(data["classes"])} if kind == "density" else {}
    for role, artifact in roles.items():  # of what shapes the model, not of what its loss alone uses
        if artifact.kind == "tokenizer":
            given[role] = store.record(artifact).notes["spec"]
        elif artifact.kind == "features":
            given[role] = json.loads(store.storage.read(f"{artifact.folder}/classifier.json"))
    return given


def settings_of(plain: dict[str, Any]) -> TrainSettings:
    """Training settings from their plain form."""
    return TypeAdapter(TrainSettings).validate_python(plain)


def _fit(job: TrainJob, step: StepSpec, store: Store, cluster: ClusterConfig, run: Run | None, report: Report) -> dict[str, Any]:
    """Run the workers to the end, passing on their metrics; the final ones."""
    tail, total = Tail(store.storage, job.folder), job.settings.steps
    done = tail.new()
    report(step.step, done[-1]["step"] if done else 0, total, {})
    if run is not None:  # what an interrupted run had left in the store; the tracker drops what it already has
        for row in done:
            run.log(numbers(row), row["step"])

    def pass_on() -> None:
        for row in tail.new():
            for text in row.get(WARNINGS, {}).values():
                log.warning("%s: %s", step.name, text)
            report(step.step, row["step"], total, numbers(row))
            if run is not None:
                run.log(numbers(row), row["step"])

    counting = Counting(job, others_of(step, store))  # while the workers train
    with session(cluster, store.root) as current:
        check_room(current.ray, cluster, cluster.execution.workers)
        trainer = trainer_of(worker, job, f"{step.kind}-{step.name}-{step.fingerprint}", store, cluster, current)
        stopped, error = _wait(trainer, store.storage, job.folder, pass_on)
    return _result(step, store, cluster, stopped, error) | {"planned": counting.result()}


def _wait(trainer: Any, storage: Storage, folder: str, pass_on: Callable[[], None]) -> tuple[int | None, BaseException | None]:
    """Wait for Ray's trainer to end: the signal that stopped it, if one did, and the error that it ended with."""
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    # Training waits in a thread, so that this one keeps the signals and the progress.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    with noted_signals() as received:
        thread.start()
        passed_on = False
        while thread.is_alive():
            thread.join(0.25 if storage.is_local else 3.0)
            pass_on()
            if received and not passed_on:
                storage.write(f"{folder}/{STOP_FILE}", json.dumps({"signal": received[0]}).encode())
                passed_on = True
    pass_on()
    return received[0] if received else None, errors[0] if errors else None


def _result(step: StepSpec, store: Store, cluster: ClusterConfig, stopped: int | None, error: BaseException | None) -> dict[str, Any]:
    """The metrics that the workers left, or the reason why there are none."""
    storage = store.storage
    logs = store.root / "logs" / "ray" if cluster.address == "local" else "/tmp/ray/session_latest/logs on the nodes"
    if (failure := _read(storage, f"{step.folder}/{_FAILURE}")) is not None:
        kinds = {"ArtifactError": ArtifactError, "ConfigError": ConfigError}
        raise kinds.get(failure["kind"], StepError)(failure["message"])
    if stopped is not None:
        storage.delete(f"{step.folder}/{STOP_FILE}")
        if stopped == signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(f"{step.step}: stopped by SIGTERM, the state is saved; the same command goes on")
    if error is not None:
        text = str(error).strip().splitlines()
        raise StepError(f"{step.step}: the workers failed: {text[-1] if text else error!r}; their logs: {logs}")
    result = _read(storage, f"{step.folder}/{_RESULT}")
    if result is None:
        raise StepError(f"{step.step}: the workers ended without a result; their logs: {logs}")
    return result


def worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: the loop, with a stop marker, and with failures that a restart cannot mend left as a file.

    Raises:
        Exception: whatever Ray should answer with a restart.
    """
    import ray.train

    from tokenloom.tasks.training.train_loop import train

    job: TrainJob = config["job"]
    job = replace(job, root=str(node_root(job.root)))
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    storage = Storage(job.store)
    if storage.is_local and not storage.local_path().is_dir():
        raise StepError(f"{job.store} is not on {platform.node()}: give --store s3://…, or a folder that all nodes share")
    failure = f"{job.folder}/{_FAILURE}"
    if storage.exists(failure):
        return
    try:
        metrics = train(job, rank, world, stop=stop_requested(storage, job.folder) if rank == 0 else None)
        if rank == 0:
            storage.write(f"{job.folder}/{_RESULT}", json.dumps(metrics).encode())
    except Preempted:
        return
    except (StepError, ConfigError) as error:
        # A NaN or a damaged shard stays what it is: no restart. Leaving the group ends the others' waiting.
        storage.write(failure, json.dumps({"kind": type(error).__name__, "message": str(error), "rank": rank}).encode())
        _leave()
    except Exception:
        for _ in range(20):  # was it a peer that left with a clear message?
            if storage.exists(failure):
                return
            time.sleep(0.1)
        raise


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _read(storage: Storage, path: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(storage.read(path)))
    except (FileNotFoundError, ValueError):
        return None

"""Step ``evaluate``: samples, numbers under one recorded protocol, pictures and a report.

Samples are drawn in shards, each from its own stream of (seed, shard), by Ray actors; a finished shard leaves a marker. A
generator is optional: without one the tokenizer alone is judged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloom.configs.schema import DENSITY_METRICS, TOKENIZER_METRICS, ClusterConfig, EvaluateConfig, SampleConfig, identity
from tokenloom.models.core.build import ModelSpec, load_model, parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Density, Generator, Method, Tokenizer
from tokenloom.tasks.evaluation import judging, pictures, reconstruction
from tokenloom.tasks.evaluation.judging import EvaluationRequest, Findings, Reference
from tokenloom.tasks.evaluation.protocol import protocol
from tokenloom.tasks.evaluation.report import page
from tokenloom.tasks.evaluation.sampling_actor import draw_samples
from tokenloom.tasks.evaluation.scores import Judged
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.serving.predict import default_sampler
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work
from tokenloom.tasks.training.parallel import device_of

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.tracker import Tracker

VERSION = 3  # of how generators and densities are judged: samples of a seed are part of it
VERSION_CODED = 2  # of how tokenizers are, which draw nothing


def plan_evaluate(
    name: str,
    generator: Artifact | None,
    tokenizer: Artifact,
    dataset: Artifact,
    features: Artifact,
    sample: SampleConfig,
    evaluate: EvaluateConfig,
    store: Store,
) -> StepSpec:
    """The step that judges a generator with its tokenizer, or (``generator=None``) a tokenizer alone.

    Raises:
        ConfigError: a protocol that cannot be kept.
    """
    inputs = {"tokenizer": tokenizer, "dataset": dataset, "features": features}
    if generator is None:
        measured = [name for name in evaluate.metrics if name in TOKENIZER_METRICS]
        if not measured:
            raise ConfigError(f"evaluate.metrics={list(evaluate.metrics)}: none judges a tokenizer alone; add {TOKENIZER_METRICS[0]}")
        # What says how samples are drawn and judged does not shape these numbers.
        alone = {"evaluate": {"metrics": measured, "features": evaluate.features}}
        return StepSpec("evaluate", VERSION_CODED, "evaluation", name, alone, inputs)
    _check_neighbours(evaluate)
    config = {"evaluate": identity(evaluate), "sample": identity(sample)}
    inputs["generator"] = generator
    return StepSpec("evaluate", VERSION, "evaluation", name, config, inputs)


def plan_density_evaluation(name: str, density: Artifact, dataset: Artifact, features: Artifact, evaluate: EvaluateConfig) -> StepSpec:
    """The step that judges a density: its samples, and its likelihood of the held-out data.

    Raises:
        ConfigError: a protocol that cannot be kept.
    """
    _check_neighbours(evaluate)
    measured = [name for name in evaluate.metrics if name in DENSITY_METRICS]
    if not measured:
        raise ConfigError(f"evaluate.metrics={list(evaluate.metrics)}: none judges a density; add {DENSITY_METRICS[0]}")
    config = {"evaluate": identity(evaluate) | {"metrics": measured}}
    return StepSpec("evaluate", VERSION, "evaluation", name, config, {"density": density, "dataset": dataset, "features": features})


def _check_neighbours(evaluate: EvaluateConfig) -> None:
    if evaluate.neighbours >= evaluate.samples:
        raise ConfigError(f"evaluate.neighbours={evaluate.neighbours}: must be less than evaluate.samples={evaluate.samples}")


def evaluate(step: StepSpec, store: Store, cluster: ClusterConfig, tracker: Tracker | None = None, report: Report = silent) -> Outcome:
    """Carry out a planned evaluation, or find it; numbers and pictures also go to the tracker.

    Raises:
        ArtifactError: an input is missing or damaged.
        StepError: sampling failed, or a number is not finite.
    """
    outcome = store.execute(step, lambda work: _body(step, store, cluster, report, work))
    if tracker is not None and outcome.status == "ran":
        publish(store, outcome.artifact, tracker)
    return outcome


def publish(store: Store, evaluation: Artifact, tracker: Tracker) -> None:
    """Send an evaluation's numbers, protocol and pictures to the tracker (also to one that has lost them)."""
    record = store.record(evaluation)
    step = StepSpec(record.step, record.version, "evaluation", evaluation.name, record.config, record.inputs, record.notes)
    names = [f["path"].removeprefix(f"{evaluation.folder}/") for f in record.files]
    folder = store.fetch(evaluation, *[n for n in names if n.endswith((".png", ".json", ".html"))])
    with tracker.track(step, evaluation.uri) as run:
        run.log({k: v for k, v in record.metrics.items() if isinstance(v, (int, float))}, 0)
        for name in names:
            if name.endswith(".png"):
                run.picture(Path(name).stem, (folder / name).read_bytes())
            elif name.endswith((".json", ".html")):
                run.file(folder / name)


def _body(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
    config = EvaluateConfig(**step.config["evaluate"])
    models = _models(step, store, cluster)
    reference = Reference.of(store, step.inputs["dataset"], step.inputs["features"], config)
    tokenizer = next((model for model, _ in models.values() if isinstance(model, Tokenizer)), None)
    coded = None if tokenizer is None else reconstruction.code(tokenizer, reference.image)
    report("evaluate", 1, 5, {})
    found, judged = Findings(), None
    for model, spec in models.values():
        if isinstance(model, (Generator, Density)):
            judged = _judge_sampling(step, store, cluster, config, reference, model, spec, coded, work, report, found)
        elif len(models) == 1:
            found.numbers["parameters"] = parameters(model)
    report("evaluate", 4, 5, {})
    if tokenizer is not None and coded is not None:
        _add(found, judging.judge_codes(tokenizer, coded, reference, config))
    trained: dict[str, Artifact] = {role: step.inputs[role] for role in ("tokenizer", "generator", "density") if role in models}
    if series := judging.training_curves(store, trained):
        found.pictures["curves"] = pictures.curves(series)
    broken = [name for name, value in found.numbers.items() if not np.isfinite(value)]
    if broken:
        raise StepError(f"evaluation of {step.name}: {', '.join(broken)} not finite; look at the samples in {work.uri}")
    found.notes["protocol"] = protocol(step, store, config, reference, judged)
    _keep(step, found, work)
    work.notes |= found.notes | {"classes": reference.names}
    store.storage.delete(f"{work.folder}/parts")  # they are all in samples.npz
    report("evaluate", 5, 5, found.numbers)
    return found.numbers


def _models(step: StepSpec, store: Store, cluster: ClusterConfig) -> dict[str, tuple[Method, ModelSpec]]:
    """The models that are judged, by role, in eval mode."""
    device = device_of(cluster.execution.device)
    roles = [role for role in ("generator", "density", "tokenizer") if role in step.inputs]
    return {role: load_model(store.fetch(step.inputs[role], "model.json", "weights.safetensors"), device) for role in roles}


def _judge_sampling(
    step: StepSpec,
    store: Store,
    cluster: ClusterConfig,
    config: EvaluateConfig,
    reference: Reference,
    model: Generator | Density,
    spec: ModelSpec,
    coded: reconstruction.Coded | None,
    work: Work,
    report: Report,
    found: Findings,
) -> Judged:
    """Sample a model and judge what it draws, and its likelihood, into ``found``."""
    condition_spec = ConditionSpec.of(spec, reference.names)
    request = EvaluationRequest.of(condition_spec, reference, config, store)
    drawn, speed = draw_samples(step, store, cluster, config, request.request, work, report)
    judged, of_samples = judging.judge_samples(drawn, speed, request, reference, config, store)
    _add(found, of_samples)
    found.numbers["parameters"] = parameters(model)
    report("evaluate", 3, 5, {})
    if isinstance(model, Density):
        if "nll" in config.metrics:
            found.numbers |= judging.density_likelihood(model, reference, config.seed)
        return judged
    assert coded is not None, "a generator is judged with its tokenizer"
    if "nll" in config.metrics:
        found.numbers |= judging.generator_likelihood(model, condition_spec, coded, request, reference)
    found.notes["sampler"] = default_sampler(model).edited(**step.config["sample"]).to_dict()
    return judged


def _add(found: Findings, more: Findings) -> None:
    found.numbers |= more.numbers
    found.pictures |= more.pictures
    found.notes |= more.notes
    found.arrays |= more.arrays


def _keep(step: StepSpec, found: Findings, work: Work) -> None:
    """Write numbers, pictures, arrays and the report into the artifact."""
    for name, data in found.arrays.items():
        work.put(name, data)
    for name, data in found.pictures.items():
        work.put(f"{name}.png", data)
    work.put("metrics.json", json.dumps(found.numbers, indent=1, sort_keys=True).encode())
    work.put("protocol.json", json.dumps(found.notes, indent=1, sort_keys=True).encode())
    lineage = {role: artifact.id for role, artifact in step.inputs.items()}
    work.put("report.html", page(step.name, found.numbers, found.notes, lineage, found.pictures).encode())

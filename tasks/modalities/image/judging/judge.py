"""Images judged: a generator with its tokenizer, a tokenizer alone, or a density; numbers, pictures and a report.

Samples are drawn in shards by Ray actors; a finished shard leaves a marker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig
from tokenloom.models.core.build import ModelSpec, load_model, parameters
from tokenloom.models.core.protocols import Density, Generator, Method, Tokenizer
from tokenloom.tasks.evaluation import plots
from tokenloom.tasks.evaluation.findings import Findings, keep, training_curves
from tokenloom.tasks.modalities.image.judging import measures, reconstruction
from tokenloom.tasks.modalities.image.judging.meanings import TITLES
from tokenloom.tasks.modalities.image.judging.measures import COLUMN, EvaluationRequest, Reference
from tokenloom.tasks.modalities.image.judging.protocol import protocol
from tokenloom.tasks.modalities.image.judging.sampling_actor import draw_samples
from tokenloom.tasks.modalities.image.judging.scores import Judged
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.serving.predict import default_sampler
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work
from tokenloom.tasks.training.parallel import device_of


@dataclass(frozen=True)
class _Execution:
    """One evaluation while it is made."""

    step: StepSpec
    store: Store
    cluster: ClusterConfig
    config: EvaluateConfig
    work: Work
    report: Report
    reference: Reference
    found: Findings = field(default_factory=Findings)


def judge(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
    """Judge the models of a planned evaluation into its artifact; the numbers.

    Raises:
        StepError: sampling failed, too few held-out images, or a number that is not finite.
    """
    config = EvaluateConfig(**step.config["evaluate"])
    models = _models(step, store, cluster)
    reference = Reference.of(store, step.inputs["dataset"], step.inputs["features"], config, cluster)
    tokenizer = next((model for model, _ in models.values() if isinstance(model, Tokenizer)), None)
    coded = None if tokenizer is None else reconstruction.code(tokenizer, reference.image, folder=store.root / "scratch")
    report("evaluate", 1, 5, {})
    here, judged = _Execution(step, store, cluster, config, work, report, reference), None
    found = here.found
    for model, spec in models.values():
        if isinstance(model, (Generator, Density)):
            judged = _judge_sampling(here, model, spec, coded)
        elif len(models) == 1:
            found.numbers["parameters"] = parameters(model)
    report("evaluate", 4, 5, {})
    if tokenizer is not None and coded is not None:
        found.add(measures.judge_codes(tokenizer, coded, reference, config))
    trained: dict[str, Artifact] = {role: step.inputs[role] for role in ("tokenizer", "generator", "density") if role in models}
    if series := training_curves(store, trained):
        found.pictures["curves"] = plots.curves(series)
    broken = [name for name, value in found.numbers.items() if not np.isfinite(value)]
    if broken:
        raise StepError(f"evaluation of {step.name}: {', '.join(broken)} not finite; look at the samples in {work.uri}")
    found.notes["protocol"] = protocol(step, store, config, reference, judged)
    under = {
        key: f"{key.removeprefix(COLUMN)} (above) and samples drawn under it (below)" for key in found.pictures if key.startswith(COLUMN)
    }
    keep(step, found, work, {**TITLES, **under})
    work.notes |= found.notes | {"classes": reference.names}
    store.storage.delete(f"{work.folder}/parts")  # they are all in samples.npz
    report("evaluate", 5, 5, found.numbers)
    return found.numbers


def _models(step: StepSpec, store: Store, cluster: ClusterConfig) -> dict[str, tuple[Method, ModelSpec]]:
    """The models that are judged, by role, in eval mode."""
    device = device_of(cluster.execution.device)
    roles = [role for role in ("generator", "density", "tokenizer") if role in step.inputs]
    return {role: load_model(store.fetch(step.inputs[role], "model.json", "weights.safetensors"), device) for role in roles}


def _judge_sampling(here: _Execution, model: Generator | Density, spec: ModelSpec, coded: reconstruction.Coded | None) -> Judged:
    """Sample a model and judge what it draws, and its likelihood, into what is found."""
    config, reference, found, store = here.config, here.reference, here.found, here.store
    condition_spec = ConditionSpec.of(spec, reference.names)
    request = EvaluationRequest.of(condition_spec, reference, config, store)
    drawn = draw_samples(here.step, store, here.cluster, config, request, here.work, here.report)
    compared = here.step.notes.get("reference", config.reference)
    judged, of_samples = measures.judge_samples(drawn, request, reference, config, store, compared)
    found.add(of_samples)
    found.numbers["parameters"] = parameters(model)
    here.report("evaluate", 3, 5, {})
    if isinstance(model, Density):
        if "nll" in config.metrics:
            found.numbers |= measures.density_likelihood(model, reference, config.seed)
        return judged
    assert coded is not None, "a generator is judged with its tokenizer"
    found.notes["inputs"] = list(condition_spec.inputs)
    if "nll" in config.metrics:
        found.numbers |= measures.generator_likelihood(model, condition_spec, coded, request, reference)
    found.notes["sampler"] = default_sampler(model).edited(**here.step.config["sample"]).to_dict()
    return judged

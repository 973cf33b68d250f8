"""Step ``evaluate``: samples, numbers under one recorded protocol, pictures and a report.

Samples are drawn in shards, each from its own stream of (seed, shard), by Ray actors; a finished shard leaves a marker. A
generator is optional: without one the tokenizer alone is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloom.configs.schema import DENSITY_METRICS, TOKENIZER_METRICS, ClusterConfig, EvaluateConfig, SampleConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work, sha256_of

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.tracker import Tracker

VERSION = 3  # of how generators and densities are judged: samples of a seed are part of it
VERSION_CODED = 2  # of how tokenizers are, which draw nothing


def plan_evaluate(
    name: str,
    generator: Artifact | None,
    tokenizer: Artifact,
    dataset: Artifact,
    features: Artifact | None,
    sample: SampleConfig,
    evaluate: EvaluateConfig,
    store: Store,
    draft: Artifact | None = None,
) -> StepSpec:
    """The step that judges a generator with its tokenizer, or (``generator=None``) a tokenizer alone.

    ``draft`` is the model that drafts for the generator, where the sampling settings do not name it.

    Raises:
        ConfigError: a protocol that cannot be kept, or a draft model that is not in the store.
    """
    inputs = {"tokenizer": tokenizer, "dataset": dataset} | ({} if features is None else {"features": features})
    if generator is None:
        measured = [name for name in evaluate.metrics if name in TOKENIZER_METRICS]
        if not measured:
            raise ConfigError(f"evaluate.metrics={list(evaluate.metrics)}: none judges a tokenizer alone; add {TOKENIZER_METRICS[0]}")
        # What says how samples are drawn and judged does not shape these numbers.
        network = {key: value for key, value in identity(evaluate).items() if key in ("features", "resize")}
        alone = {"evaluate": {"metrics": measured, **network}}
        return StepSpec("evaluate", VERSION_CODED, "evaluation", name, alone, inputs)
    _check_neighbours(evaluate)
    settings = identity(sample)
    protocol, notes = _by_content(evaluate)
    config = {"evaluate": protocol, "sample": drafts.without_reference(settings)}
    inputs["generator"] = generator
    if (draft := draft_model(settings, store) or draft) is not None:
        inputs["draft"] = draft
    return StepSpec("evaluate", VERSION, "evaluation", name, config, inputs, notes)


def draft_model(sample: Mapping[str, Any], store: Store) -> Artifact | None:
    """The generator that sampling settings name to draft, if they do.

    Raises:
        ConfigError: it is not in the store.
    """
    if not (reference := drafts.reference(sample)):
        return None
    try:
        return store.resolve(reference, "generator")
    except ConfigError as error:
        raise ConfigError(f"{drafts.field(sample)}: {error}") from error


def plan_density_evaluation(
    name: str, density: Artifact, dataset: Artifact, features: Artifact | None, evaluate: EvaluateConfig
) -> StepSpec:
    """The step that judges a density: its samples, and its likelihood of the held-out data.

    Raises:
        ConfigError: a protocol that cannot be kept.
    """
    _check_neighbours(evaluate)
    measured = [name for name in evaluate.metrics if name in DENSITY_METRICS]
    if not measured:
        raise ConfigError(f"evaluate.metrics={list(evaluate.metrics)}: none judges a density; add {DENSITY_METRICS[0]}")
    protocol, notes = _by_content(evaluate)
    inputs = {"density": density, "dataset": dataset} | ({} if features is None else {"features": features})
    return StepSpec("evaluate", VERSION, "evaluation", name, {"evaluate": protocol | {"metrics": measured}}, inputs, notes)


def _by_content(evaluate: EvaluateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The protocol, in which a reference file is its content, and notes that say where it lies.

    Raises:
        ConfigError: the file is not there.
    """
    protocol = identity(evaluate)
    if evaluate.reference in ("held_out", "train"):
        return protocol, {}
    path = Path(evaluate.reference).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"evaluate.reference={evaluate.reference!r}: no file {path}; write held_out, train, or a reference FILE.npz")
    return protocol | {"reference": f"sha256:{sha256_of(path)}"}, {"reference": str(path)}


def _check_neighbours(evaluate: EvaluateConfig) -> None:
    if evaluate.neighbours >= evaluate.samples:
        raise ConfigError(f"evaluate.neighbours={evaluate.neighbours}: must be less than evaluate.samples={evaluate.samples}")


def evaluate(step: StepSpec, store: Store, cluster: ClusterConfig, tracker: Tracker | None = None, report: Report = silent) -> Outcome:
    """Carry out a planned evaluation, or find it; numbers and pictures also go to the tracker.

    Raises:
        ArtifactError: an input is missing or damaged.
        StepError: sampling failed, or a number is not finite.
    """
    outcome = store.execute(step, lambda work: _judge(step, store, cluster, report, work))
    if tracker is not None and outcome.status == "ran":
        publish(store, outcome.artifact, tracker)
    return outcome


def publish(store: Store, evaluation: Artifact, tracker: Tracker) -> None:
    """Send an evaluation's numbers, protocol and pictures to the tracker (also to one that has lost them)."""
    record = store.record(evaluation)
    step = StepSpec(record.step, record.version, "evaluation", evaluation.name, record.config, record.inputs, record.notes)
    names = [f["path"].removeprefix(f"{evaluation.folder}/") for f in record.files]
    folder = store.fetch(evaluation, *[n for n in names if n.endswith((".png", ".json", ".html"))])
    ended = datetime.fromisoformat(record.created).timestamp()
    with tracker.track(step, evaluation.uri, (ended - record.seconds, ended)) as run:
        run.log({k: v for k, v in record.metrics.items() if isinstance(v, (int, float))}, 0)
        for name in names:
            if name.endswith(".png"):
                run.picture(Path(name).stem, (folder / name).read_bytes())
            elif name.endswith((".json", ".html")):
                run.file(folder / name)


def _judge(step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
    return modalities.of(store.record(step.inputs["dataset"]).notes).judge(step, store, cluster, report, work)

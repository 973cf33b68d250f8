"""Step ``evaluate``: samples, numbers under one recorded protocol, pictures and a report.

Samples are drawn in shards, each from its own stream of (seed, shard), by Ray actors; a finished shard leaves a marker. A
generator is optional: without one the tokenizer alone is judged.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenloom.configs.schema import TOKENIZER_METRICS, ClusterConfig, EvaluateConfig, SampleConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work

if TYPE_CHECKING:
    from tokenloom.models.core.protocols import Generator, Tokenizer
    from tokenloom.tasks.evaluation.scores import Judged
    from tokenloom.tasks.tracking.tracker import Tracker

VERSION = 3  # of how generators are judged: samples of a seed are part of it
VERSION_CODED = 2  # of how tokenizers are, which draw nothing
TRAIN_LIMIT = 20_000  # training images that nearest neighbours are looked for in
HELD_OUT_LIMIT = 10_000
NEAREST = 20  # samples shown beside their nearest training images
SHOWN = 20  # held-out images shown beside their reconstructions
RECONSTRUCTIONS = "reconstructions.npz"  # the same as arrays ``original`` and ``decoded``, for a comparison of tokenizers
Numbers = dict[str, float]


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
    if evaluate.neighbours >= evaluate.samples:
        raise ConfigError(f"evaluate.neighbours={evaluate.neighbours}: must be less than evaluate.samples={evaluate.samples}")
    config = {"evaluate": identity(evaluate), "sample": identity(sample)}
    inputs["generator"] = generator
    return StepSpec("evaluate", VERSION, "evaluation", name, config, inputs)


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
    from tokenloom.models.core.build import load_model, parameters
    from tokenloom.tasks.data.captions import in_turn
    from tokenloom.tasks.evaluation import pictures, reading, reconstruction, scores
    from tokenloom.tasks.evaluation.report import page
    from tokenloom.tasks.evaluation.sampling_actor import draw_samples
    from tokenloom.tasks.features import load_classifier, read_captions, read_images
    from tokenloom.tasks.serving.predict import spread
    from tokenloom.tasks.serving.request import ConditionSpec
    from tokenloom.tasks.training.parallel import device_of

    config = EvaluateConfig(**step.config["evaluate"])
    tokenizer_at, generator_at = step.inputs["tokenizer"], step.inputs.get("generator")
    device = device_of(cluster.execution.device)
    tokenizer = cast("Tokenizer", load_model(store.fetch(tokenizer_at, "model.json", "weights.safetensors"), device)[0])
    names = list(store.record(step.inputs["dataset"]).notes["classes"])
    network_folder = store.fetch(step.inputs["features"])
    held_out, held_label = read_images(store, step.inputs["dataset"], ["validation", "test"], HELD_OUT_LIMIT)
    if len(held_out) < config.neighbours + 2:
        raise StepError(
            f"dataset {step.inputs['dataset'].id}: {len(held_out)} held-out images are too few to judge by; raise data.validation"
        )
    numbers: Numbers = {}
    images: dict[str, bytes] = {}
    notes: dict[str, Any] = {}
    coded = reconstruction.code(tokenizer, held_out)
    report("evaluate", 1, 5, {})
    judged = None
    if generator_at is not None:
        loaded, spec = load_model(store.fetch(generator_at, "model.json", "weights.safetensors"), device)
        generator, condition_spec = cast("Generator", loaded), ConditionSpec.of(spec, names)
        labels, captions = spread(config.samples, len(names)), None
        if condition_spec.column == "text":
            captions = read_captions(store, step.inputs["dataset"], ["validation", "test"], HELD_OUT_LIMIT)
        request = labels if captions is None else in_turn(labels, held_label, captions)
        drawn, speed = draw_samples(step, store, cluster, config, request, work, report)
        train, train_label = read_images(store, step.inputs["dataset"], ["train"], TRAIN_LIMIT, scores.small)
        judged = scores.Judged(load_classifier(network_folder), drawn, labels, held_out, held_label, train, train_label)
        numbers |= {"images_per_second": speed, "parameters": parameters(generator)}
        numbers |= scores.sample_scores(judged, config)
        report("evaluate", 3, 5, {})
        if "nll" in config.metrics and generator.likelihood == "exact":
            conditions = condition_spec.conditions(held_label if captions is None else captions)
            numbers |= scores.likelihood(generator, coded.tokens, conditions, int(np.prod(held_out.shape[1:])))
        images |= _sample_pictures(judged, names, None if captions is None else list(request))
        notes["sampler"] = _sampler(generator, step.config["sample"])
        texts = {} if captions is None else {"texts": np.array(request)}
        work.put("samples.npz", _arrays(images=drawn, labels=labels, **texts))
    else:
        numbers["parameters"] = parameters(tokenizer)
    report("evaluate", 4, 5, {})
    if "reconstruction" in config.metrics:
        numbers |= reconstruction.reconstruction_scores(load_classifier(network_folder), held_out, coded)
        numbers |= reconstruction.cost_scores(coded)
        count_SK, rows = reconstruction.code_counts(coded.tokens)
        if rows:
            numbers |= reconstruction.codebook_scores(count_SK, coded.layout.codebooks)
            use = [(scores.metrics.usage(c), scores.metrics.perplexity(c)) for c in count_SK]
            images["codebook"] = pictures.codebook(count_SK, rows, [u for u, _ in use], [p for _, p in use])
    if "text" in config.metrics:
        size, channels = held_out.shape[1], held_out.shape[3]
        read, both, why = reading.preservation(reconstruction.through(tokenizer), size, channels, dark=bool(held_out.mean() < 128))
        numbers |= read
        images["text"] = pictures.pairs(both[0, :20], both[1, :20], ("text", "decoded"))
        notes |= {"skipped": [why]} if why else {}
    shown = np.linspace(0, len(held_out) - 1, min(SHOWN, len(held_out))).astype(int)
    images["reconstructions"] = pictures.pairs(held_out[shown], coded.image[shown], ("original", "decoded"))
    work.put(RECONSTRUCTIONS, _arrays(original=held_out[shown], decoded=coded.image[shown]))
    if series := _curves(store, {"tokenizer": tokenizer_at, **({"generator": generator_at} if generator_at else {})}):
        images["curves"] = pictures.curves(series)
    broken = [name for name, value in numbers.items() if not np.isfinite(value)]
    if broken:
        raise StepError(f"evaluation of {step.name}: {', '.join(broken)} not finite; look at the samples in {work.uri}")
    notes["protocol"] = _protocol(step, store, config, held_out, held_label, judged, network_folder)
    for name, data in images.items():
        work.put(f"{name}.png", data)
    work.put("metrics.json", json.dumps(numbers, indent=1, sort_keys=True).encode())
    work.put("protocol.json", json.dumps(notes, indent=1, sort_keys=True).encode())
    lineage = {role: artifact.id for role, artifact in step.inputs.items()}
    work.put("report.html", page(step.name, numbers, notes, lineage, images).encode())
    work.notes |= notes | {"classes": names}
    store.storage.delete(f"{work.folder}/parts")  # they are all in samples.npz
    report("evaluate", 5, 5, numbers)
    return numbers


def _arrays(**arrays: NDArray[Any]) -> bytes:
    """A ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _sampler(generator: Generator, sample: dict[str, Any]) -> dict[str, Any]:
    from tokenloom.tasks.serving.predict import default_sampler

    return default_sampler(generator).edited(**sample).to_dict()


def _protocol(
    step: StepSpec, store: Store, config: EvaluateConfig, held_out: NDArray, held_label: NDArray, judged: Judged | None, network: Path
) -> dict[str, Any]:
    """All that a number depends on besides the model; two evaluations compare only when these agree."""
    from tokenloom.tasks import features
    from tokenloom.tasks.evaluation import reading, recognition, scores

    dataset = store.record(step.inputs["dataset"])
    weights = network / "classifier.safetensors"
    protocol: dict[str, Any] = {
        "version": VERSION_CODED if judged is None else VERSION,
        "reference": {
            "dataset": dataset.artifact.fingerprint,
            "splits": ["validation", "test"],
            "images": len(held_out),
            "sha256": hashlib.sha256(held_out.tobytes() + held_label.astype("<i8").tobytes()).hexdigest()[:16],
        },
        "image": {"size": held_out.shape[1], "channels": held_out.shape[3], "fit": dataset.config["data"]["fit"]},
        "rounding": "uint8 = round((x + 1) * 127.5), no resize",
        "features": {
            "network": features.NAME,
            "artifact": step.inputs["features"].fingerprint,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()[:16],
        },
        "text": reading.protocol(held_out.shape[1]),
    }
    if judged is not None:
        counts = np.bincount(judged.sample_label, minlength=max(1, len(dataset.notes["classes"])))
        protocol |= {
            "samples": len(judged.sample),
            "class_balance": {"rule": "even", "least": int(counts.min()), "most": int(counts.max())},
            "seed": config.seed,
            "shard": config.shard,
            "manifold": {
                "neighbours": config.neighbours,
                "components": config.components,
                "pixels": scores.SIDE,
                "real": scores.manifold_reference(judged, config.samples)[1],
            },
            "recognition": {
                "machine": "rbf svm",
                "components": recognition.COMPONENTS,
                "train": min(recognition.LIMIT, len(judged.train_label)),
            },
            "memorisation": {"distance": "euclidean, pixels", "pixels": scores.SIDE, "train": len(judged.train_label)},
        }
    return protocol


def _sample_pictures(judged: Judged, names: list[str], texts: list[str] | None) -> dict[str, bytes]:
    """Samples by class, or by text; and beside their nearest training images."""
    from tokenloom.tasks.evaluation import metrics, pictures, scores

    shown = np.linspace(0, len(judged.sample) - 1, min(NEAREST, len(judged.sample))).astype(int)
    sample = scores.small(judged.sample[shown])
    if judged.nearest_index is None:
        index = metrics.nearest(sample, judged.train_small)[1]
    else:
        index = judged.nearest_index[shown]
    kinds, which = names, judged.sample_label
    if texts is not None:
        kinds = list(dict.fromkeys(texts))
        which = np.array([kinds.index(text) for text in texts])
    return {
        "samples": pictures.class_grid(judged.sample, which, kinds),
        "nearest": pictures.pairs(sample, judged.train_small[index], ("sample", "nearest")),
    }


def _curves(store: Store, models: dict[str, Artifact]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Loss and validation loss over the steps of each model that was trained here."""
    from tokenloom.tasks.training.curves import read_curves

    series = {}
    for role, artifact in models.items():
        rows = read_curves(store.storage, artifact.folder)
        lines = {}
        for name in ("loss", "validation_loss"):
            points = [(float(r["step"]), float(r[name])) for r in rows if isinstance(r.get(name), (int, float)) and np.isfinite(r[name])]
            if points:
                lines[name.replace("_", " ")] = ([p[0] for p in points], [p[1] for p in points])
        if lines:
            series[role] = lines
    return series

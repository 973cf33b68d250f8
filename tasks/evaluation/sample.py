"""Drawing samples for people: which model a reference means, and a picture or arrays of what it draws."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tokenloom.models.core.build import ModelSpec, load_model, save_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Generator
from tokenloom.tasks.evaluation import pictures
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.serving.predict import (
    SHARD,
    Pair,
    open_bundle,
    open_pair,
    sample_images,
    sample_shards,
    spread,
    traced_images,
    use_draft_model,
)
from tokenloom.tasks.serving.request import Request
from tokenloom.tasks.store.artifacts import Artifact, Record, Store
from tokenloom.tasks.store.storage import atomic
from tokenloom.tasks.training.checkpoint import Checkpoints

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.tracker import Tracker

#: Written by training before its first step, so that a run can be sampled while it trains:
#: ``{"spec": …, "tokenizer": artifact, "classes": […], "sample": …}``.
PLAN = "plan.json"
SAMPLED = ("generator", "density")  # kinds of artifacts that are sampled


@dataclass(frozen=True)
class ModelReference:
    """A model that a reference means, ready to be opened."""

    title: str
    generator: Artifact
    tokenizer: Artifact | None  # None of a density
    classes: list[str]
    sample: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    draft: Artifact | None = None  # drafts for the generator


def open_model(reference: str, store: Store, tracker: Tracker | None = None, device: str = "cpu") -> tuple[Pair, str]:
    """The models behind a reference, and its full name.

    Args:
        reference: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` of the registry; an artifact (generator, evaluation
            or registration: NAME, NAME-FINGERPRINT or a unique start of it); or a generator that is still training.

    Raises:
        ConfigError: nothing fits, or it cannot be sampled, naming what there is.
    """
    if reference.startswith("models:/"):
        if tracker is None:
            raise ConfigError(f"{reference!r}: needs a tracking server")
        from tokenloom.tasks.tracking.registry import Registry

        return open_bundle(Registry(tracker).download(reference) / "artifacts" / "bundle", device), reference
    try:
        found = _of_artifact(_resolve(reference, store), store)
    except ConfigError as error:
        training = _in_training(reference, store)
        if training is None:
            raise error
        return _open_training(training, store, device)
    tokenizer, draft = (None if each is None else store.fetch(each) for each in (found.tokenizer, found.draft))
    given = found.classes, drafts.without_reference(found.sample), device, found.texts
    return open_pair(store.fetch(found.generator), tokenizer, *given, draft), found.title


def _resolve(reference: str, store: Store) -> Artifact:
    try:
        return store.resolve(reference, "generator")
    except ConfigError as error:
        for kind in ("density", None):
            with contextlib.suppress(ConfigError):
                return store.resolve(reference, kind)
        raise error


def _of_artifact(artifact: Artifact, store: Store) -> ModelReference:
    record = store.record(artifact)
    generator = artifact if artifact.kind in SAMPLED else record.inputs.get("generator", record.inputs.get("density"))
    if generator is None:
        raise ConfigError(f"{artifact.kind} {artifact.id}: cannot be sampled; give a generator, a density, an evaluation or a registration")
    made = store.record(generator)
    sample = _sampling(generator, record, store)
    return ModelReference(
        f"{generator.kind} {generator.id}",
        generator,
        made.inputs.get("tokenizer"),
        classes_of(made, store),
        sample,
        list(made.notes.get("texts", ())),
        record.inputs.get("draft") or draft_of(generator, sample, store),
    )


def draft_of(generator: Artifact, sample: Mapping[str, Any], store: Store) -> Artifact | None:
    """The model that drafts: the one that the settings name, or the one that the generator was last evaluated with."""
    if reference := drafts.reference(sample):
        return store.resolve(reference, "generator")
    judged = [r for r in store.records("evaluation") if r.inputs.get("generator") == generator]
    return judged[-1].inputs.get("draft") if judged else None


def classes_of(generator: Record, store: Store) -> list[str]:
    """Names of the classes that a generator knows."""
    if "classes" in generator.notes:
        return list(generator.notes["classes"])
    return list(store.record(generator.inputs["tokens"]).notes["classes"])  # of a record from before classes were noted


def _sampling(generator: Artifact, record: Record, store: Store) -> dict[str, Any]:
    """The run's own sampling settings: those under which the generator was last evaluated, or those of the run that trained it."""
    if "sample" in record.config:
        return dict(record.config["sample"])
    judged = [r for r in store.records("evaluation") if r.inputs.get("generator", generator).fingerprint == generator.fingerprint]
    return dict(judged[-1].config.get("sample", {}) if judged else store.record(generator).notes.get("sample", {}))


def _in_training(reference: str, store: Store) -> str | None:
    """Folder of the unfinished generator or density of this name, the one with the newest checkpoint."""
    known = [(kind, name) for kind in SAMPLED for name in store.storage.folders(kind)]
    fitting = [f"{kind}/{f}" for kind, f in known if f == reference or f.rpartition("-")[0] == reference or f.startswith(reference)]
    dated = []
    for folder in fitting:
        saved = _checkpoints(folder, store).saved()
        if saved and store.storage.exists(f"{folder}/{PLAN}"):
            dated.append((saved[-1].created, folder))
    return max(dated)[1] if dated else None


def _checkpoints(folder: str, store: Store) -> Checkpoints:
    return Checkpoints(store.storage, folder, folder.rpartition("-")[2], store.root / "scratch" / "sample")


def _open_training(folder: str, store: Store, device: str) -> tuple[Pair, str]:
    plan = json.loads(store.storage.read(f"{folder}/{PLAN}"))
    checkpoints = _checkpoints(folder, store)
    step = checkpoints.newest()
    if not step:
        raise ArtifactError(f"{store.storage.uri(folder)}: no whole checkpoint yet; try again a little later")
    state = checkpoints.load(step)
    weights = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    for name, tensor in state.items():  # the average over the steps is what a finished run would save
        kind, _, rest = name.partition(".")
        if kind == "ema":
            weights[rest.partition(".")[2]] = tensor
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch), ModelSpec.from_dict(plan["spec"]), {name: tensor.clone() for name, tensor in weights.items()})
        tokenizer = store.fetch(Artifact.from_dict(plan["tokenizer"])) if "tokenizer" in plan else None
        sample = plan.get("sample") or {}
        draft = store.fetch(store.resolve(reference, "generator")) if (reference := drafts.reference(sample)) else None
        given = plan["classes"], drafts.without_reference(sample), device, plan.get("texts", ())
        pair = open_pair(Path(scratch), tokenizer, *given, draft)
    return pair, f"{folder} at step {step} (still training)"


def sample_model(
    model: str,
    store: Store,
    tracker: Tracker | None,
    *,
    classes: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    total: int = 100,
    seed: int = 0,
    guidance: float | None = None,
    steps: int | None = None,
    decoder: str | Mapping[str, Any] | None = None,
    out: Path,
    report: Report = silent,
) -> dict[str, Any]:
    """Draw ``total`` samples spread evenly over the classes (all, if not given) or texts (captions that it has seen), and write them.

    ``out`` ends in ``.png`` (a grid, one row a class or text) or ``.npz`` (``images`` uint8 (N, H, W, C) and ``labels`` int64 (N,), of
    texts their numbers, which ``texts`` tells).  ``decoder`` is a way of decoding as a run file has it.

    Raises:
        ConfigError: unknown model, a class that it does not have, texts for a model of classes or the other way round, steps that it
            fixes, another ending of ``out``.
    """
    out = Path(out)
    if out.suffix not in (".png", ".npz"):
        raise ConfigError(f"--out {str(out)!r}: write FILE.png (a grid) or FILE.npz (arrays)")
    if total < 1:
        raise ConfigError(f"--n {total}: ask for at least one sample")
    pair, title = open_model(model, store, tracker, _device())
    settings = {} if decoder is None else {"decoder": decoder}
    if reference := drafts.reference(settings):
        draft, _ = load_model(store.fetch(store.resolve(reference, "generator")), _device())
        use_draft_model(cast(Generator, pair.generator), cast(Generator, draft))
    pair = pair.edited(guidance=guidance, steps=steps, **drafts.without_reference(settings))
    kinds = _kinds(pair, classes, texts, title)
    which = spread(total, len(kinds))
    words = [str(kind) for kind in kinds] if pair.condition_spec.column == "text" else None
    labels = which if words else np.asarray(kinds, np.int64)[which]
    request: Request = [words[i] for i in which.tolist()] if words else labels
    parts, traces = [], []
    for start in range(0, total, SHARD):
        report("sample", start, total, {})
        condition = pair.condition_spec.conditions(request[start : start + SHARD])
        images, trace = traced_images(pair.generator, pair.tokenizer, condition, pair.sampler, seed, start)
        parts.append(images)
        traces.append(trace)
    report("sample", total, total, {})
    _write(out, np.concatenate(parts), labels, words)
    drawn = {"texts": words} if words else {"classes": [int(k) for k in kinds]}
    decoding = {name: float(np.mean([trace[name] for trace in traces])) for name in traces[0]}
    return {"model": title, "out": str(out), "samples": total, **drawn, "seed": seed, **decoding}


def _write(out: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], words: list[str] | None) -> None:
    """Samples as arrays (``.npz``) or as a grid, one row a class or text."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as file:
        if out.suffix == ".npz":
            arrays: dict[str, Any] = {"images": images, "labels": labels, **({"texts": np.array(words)} if words else {})}
            np.savez_compressed(file, **arrays)
        elif words:
            file.write(pictures.class_grid(images, labels, words, per_class=len(images), most=len(words)))
        else:
            file.write(pictures.png(grid_by_class(images, labels)))


def _kinds(pair: Pair, classes: Sequence[int] | None, texts: Sequence[str] | None, title: str) -> list[Any]:
    """The different classes or texts to draw."""
    if pair.condition_spec.column == "class_id":
        if texts:
            raise ConfigError(f"--text {texts[0]!r}: {title} is conditioned on classes; give --classes")
        chosen = range(max(1, len(pair.classes))) if classes is None else dict.fromkeys(int(k) for k in classes)
        pair.condition_spec.check(np.asarray(list(chosen), np.int64))
        return list(chosen)
    if classes is not None:
        raise ConfigError(f"--classes: {title} is conditioned on texts; give --text")
    words = list(dict.fromkeys(texts or pair.condition_spec.texts))
    if not words:
        raise ConfigError(f"--text: {title} is conditioned on texts; give at least one")
    pair.condition_spec.check(words)
    return words


def grid_by_class(image_NHWC: NDArray[np.uint8], label_N: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One row a class in the order of the classes; a class with fewer images than another ends in white."""
    kinds, counts = np.unique(label_N, return_counts=True)
    sheet = np.full((len(kinds), counts.max(), *image_NHWC.shape[1:]), 255, np.uint8)
    for row, kind in enumerate(kinds):
        sheet[row, : counts[row]] = image_NHWC[label_N == kind]
    return pictures.grid(sheet.reshape(-1, *image_NHWC.shape[1:]), int(counts.max()))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


__all__ = ["PLAN", "classes_of", "grid_by_class", "open_model", "sample_images", "sample_model", "sample_shards"]

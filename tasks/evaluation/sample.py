"""Samples for people: which model a reference means; its kind of signal draws and writes them."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from tokenloom.models.core.build import ModelSpec, load_model, save_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Generator
from tokenloom.tasks import modalities
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.serving.predict import Pair, check_prefix, open_bundle, open_pair, sized, use_draft_model
from tokenloom.tasks.store.artifacts import Artifact, Record, Store
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
    pair = open_pair(store.fetch(found.generator), tokenizer, *given, draft)
    return _with_data(pair, dataset_of(store.record(found.generator), store), store), found.title


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


def dataset_of(made: Record, store: Store) -> Artifact | None:
    """The dataset that a model was trained on, by way of its tokens; None for one that was imported."""
    if "dataset" in made.inputs:
        return made.inputs["dataset"]
    return store.record(made.inputs["tokens"]).inputs["dataset"] if "tokens" in made.inputs else None


def _with_data(pair: Pair, dataset: Artifact | None, store: Store) -> Pair:
    """The models with what their kind of signal keeps of the data, and the dataset itself."""
    if dataset is None:
        return pair
    return replace(pair, known={**modalities.kind(pair.kind).serving(store.record(dataset)), "dataset": dataset.to_dict()})


def draft_of(generator: Artifact, sample: Mapping[str, Any], store: Store) -> Artifact | None:
    """The model that drafts: the one that the settings name, or the one that the generator was last evaluated with."""
    if reference := drafts.reference(sample):
        return store.resolve(reference, "generator")
    judged = [r for r in store.records("evaluation") if r.inputs.get("generator") == generator]
    return judged[-1].inputs.get("draft") if judged else None


def classes_of(generator: Record, store: Store) -> list[str]:
    """Names of the classes that a generator knows: their numbers, of an imported one."""
    if "classes" in generator.notes:
        return list(generator.notes["classes"])
    if "tokens" not in generator.inputs:
        return [str(number) for number in range(generator.notes["spec"]["given"]["classes"])]
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
        pair = _with_data(pair, Artifact.from_dict(plan["dataset"]) if "dataset" in plan else None, store)
    return pair, f"{folder} at step {step} (still training)"


def sample_model(
    model: str,
    store: Store,
    tracker: Tracker | None,
    *,
    classes: str | Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    total: int = 100,
    seed: int = 0,
    history: Path | None = None,
    horizon: int | None = None,
    columns: Mapping[str, Sequence[Path]] = MappingProxyType({}),
    inpaint: tuple[Path, Path] | None = None,
    size: tuple[int, int] | None = None,
    prefix: int | None = None,
    prompts: Path | None = None,
    rewrites: Path | None = None,
    each: int | None = None,
    out: Path,
    report: Report = silent,
    **settings: Any,
) -> dict[str, Any]:
    """Draw ``total`` samples from the model behind a reference and write them to ``out``, as its kind of signal does.

    Classes are given by number, or as a person writes them (``chosen_classes``); ``columns`` are files of further columns of the data, by
    name; ``inpaint`` is an image and a mask that is white where it is drawn anew.  ``size`` (rows, columns) is that of the images where it
    is not that of training; of ``prefix`` tokens alone previews are made.  Of a file of ``prompts`` ``each`` are drawn of every one, as its
    ``rewrites`` say, into the folder ``out``.  ``settings`` are those of ``Sampler.edited``, with a
    ``decoder`` as a run file has it.

    Raises:
        ConfigError: unknown model, or a request that it cannot follow, naming the option.
    """
    if total < 1:
        raise ConfigError(f"--n {total}: ask for at least one sample")
    pair, title = open_model(model, store, tracker, _device())
    if reference := drafts.reference(settings):
        draft, _ = load_model(store.fetch(store.resolve(reference, "generator")), _device())
        use_draft_model(cast(Generator, pair.generator), cast(Generator, draft), drafts.field(settings))
    pair = sized(pair, size, title) if size is not None else pair
    pair = pair.edited(**drafts.without_reference(settings))
    check_prefix(pair, prefix, title)
    if isinstance(classes, str):
        classes = chosen_classes(classes, pair.classes, title) if pair.condition_spec.labelled else ()
    given = classes, texts, history, horizon, dict(columns), inpaint, prefix
    request = SampleRequest(Path(out), total, seed, *given, prompts, rewrites, each)
    return modalities.kind(pair.kind).sample(pair, title, request, store, report)


def chosen_classes(text: str, names: Sequence[str], title: str = "the model") -> list[int]:
    """Numbers of the classes that a person wrote: a name, or several parts with commas between them, each ``3``, ``0-9`` or a name.

    What looks like a number is one, also where classes are called by other numbers.

    Raises:
        ConfigError: nothing, or a class that there is not, naming those that are near.
    """
    if text in names and not re.fullmatch(r"\d+(-\d+)?", text):
        return [names.index(text)]
    found: list[int] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        if numbers := re.fullmatch(r"(\d+)(?:-(\d+))?", part, re.ASCII):
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if not first <= last < max(1, len(names)):
                raise ConfigError(f"--classes {text!r}: {part} is none of the {len(names)} classes of {title}, numbered from 0")
            found += range(first, last + 1)
        elif part in names:
            found.append(names.index(part))
        else:
            near = difflib.get_close_matches(part, names, n=3, cutoff=0.4) or list(names[:5])
            hint = f"; there are e.g. {', '.join(near)}" if near else ""
            raise ConfigError(f"--classes {text!r}: {title} has no class {part!r}{hint} (numbers do as well: 0-9, 3 or 1,4,7-9)")
    if not found:
        raise ConfigError(f"--classes {text!r}: names no class; write names, or numbers as 0-9, 3 or 1,4,7-9")
    return found


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

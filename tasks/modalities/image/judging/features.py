"""Step ``features``: the network whose features the Fréchet and kernel distances compare.

A small convolutional classifier trained on the dataset's own training split. Its artifact depends on the dataset and on
this protocol alone, so every method on that data is judged by the same network. Numbers made with it are named
``fd_classifier``, ``kid_classifier`` and ``is_classifier``: they are no FID and compare only with themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import seed_of
from tokenloom.models.parts.nets.classifier import NAME, Classifier, Protocol, load_classifier, shape_of
from tokenloom.tasks import modalities
from tokenloom.tasks.data.arrays import scratch
from tokenloom.tasks.data.loader import Loader, Rows, indices
from tokenloom.tasks.runtime.errors import ArtifactError, StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, Work

Images = NDArray[np.uint8]
VERSION = 1
PROTOCOL = Protocol()

__all__ = [
    "NAME",
    "VERSION",
    "Classifier",
    "Protocol",
    "classify",
    "features",
    "load_classifier",
    "plan_features",
    "read_images",
    "selected",
]


def read_images(
    store: Store, dataset: Artifact, splits: Sequence[str], limit: int | None = None, prepare: Callable[[Images], Images] | None = None
) -> tuple[Images, NDArray[np.int64]]:
    """Images (N, H, W, C) uint8 and labels (N,) of some splits.

    ``limit`` takes rows evenly spread over them; ``prepare`` is applied block by block.  Many images lie in a file that is mapped, so
    that memory does not grow with them.
    """
    signal, count = modalities.signal_of(store.record(dataset).notes), len(selected(store, dataset, splits, limit)[1])
    if not count:
        return np.zeros((0, *signal["shape"], signal["channels"]), np.uint8), np.zeros(0, np.int64)
    images, labels, at = np.zeros(0, np.uint8), np.zeros(count, np.int64), 0
    for block, label in _blocks(store, dataset, splits, limit):
        image = prepare(block) if prepare else block
        if not at:
            images = scratch(store.root / "scratch", (count, *image.shape[1:]), np.uint8)
        images[at : at + len(image)], labels[at : at + len(image)] = image, label
        at += len(image)
    return images, labels


def read_blocks(store: Store, dataset: Artifact, splits: Sequence[str]) -> Iterator[Images]:
    """The images of some splits, at most 1,024 at a time."""
    return (image for image, _ in _blocks(store, dataset, splits, None))


def _blocks(store: Store, dataset: Artifact, splits: Sequence[str], limit: int | None) -> Iterator[tuple[Images, NDArray[np.int64]]]:
    rows, index = selected(store, dataset, splits, limit)
    loader = Loader(rows, store.cache) if len(index) else None
    for start in range(0, len(index), 1024):
        assert loader is not None
        yield loader.items(index[start : start + 1024])


def selected(store: Store, dataset: Artifact, splits: Sequence[str], limit: int | None) -> tuple[Rows, NDArray[np.int64]]:
    """The rows of some splits, and which of them count: all, or ``limit`` evenly spread over them."""
    notes = store.record(dataset).notes
    rows = Rows.of(notes, store.uri, *splits)
    total = len(rows)
    index = np.arange(total) if limit is None or total <= limit else np.linspace(0, total - 1, limit).round().astype(np.int64)
    return rows, index


def to_float(image_NHWC: Images) -> Tensor:
    """Bytes (N, H, W, C) to float32 images (N, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def plan_features(dataset: Artifact, config: EvaluateConfig, store: Store) -> StepSpec:
    """The step that trains the feature network of a dataset.

    Raises:
        ConfigError: ``evaluate.features`` asks for weights that are not in the store.
    """
    if config.features != "auto":
        return _imported(config.features, store)
    return StepSpec("features", VERSION, "features", dataset.name, {"protocol": asdict(PROTOCOL)}, {"dataset": dataset})


def _imported(name: str, store: Store) -> StepSpec:
    """The step that has brought the named weights into the store."""
    try:
        record = store.record(store.resolve(name, "features"))
    except (ConfigError, ArtifactError) as error:
        raise ConfigError(
            f"evaluate.features={name!r}: no such weights in {store.uri}; write auto (a classifier trained on the data), or inception "
            "after `tokenloom import inception pt_inception-2015-12-05-6726825d.pth`"
        ) from error
    return StepSpec(record.step, record.version, "features", record.artifact.name, record.config, record.inputs)


def features(step: StepSpec, store: Store, report: Report = silent) -> Outcome:
    """Train the feature network, or find it; a few seconds in one process."""
    return store.execute(step, lambda work: _train(step, store, work, report))


def _train(step: StepSpec, store: Store, work: Work, report: Report) -> dict[str, Any]:
    dataset, protocol = step.inputs["dataset"], Protocol(**step.config["protocol"])
    classes = len(store.record(dataset).notes["classes"])
    image, label = read_images(store, dataset, ["train"], 50_000)
    held_image, held_label = read_images(store, dataset, ["validation", "test"], 10_000)
    if len(image) < 2:
        raise StepError(f"dataset {dataset.id}: {len(image)} training images, the feature network needs at least 2")
    network = train_classifier(image, label, classes, protocol, report)
    accuracy = float((classify(network, held_image)[1].argmax(1) == held_label).mean()) if len(held_label) else float("nan")
    from safetensors.torch import save

    work.put("classifier.safetensors", save({k: v.contiguous() for k, v in network.state_dict().items()}))
    shape = shape_of(image.shape[3], classes, protocol)
    work.put("classifier.json", json.dumps(shape, indent=1, sort_keys=True).encode())
    work.notes.update(network=NAME, features=protocol.features)
    return {"accuracy": accuracy} if np.isfinite(accuracy) else {}


def train_classifier(
    image: Images,
    label: NDArray[np.int64],
    classes: int,
    protocol: Protocol = PROTOCOL,
    report: Report = silent,
) -> Classifier:
    """A classifier of these images, the same weights for the same input (one thread: sums keep their order)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(protocol.seed, "classifier"))
            network = Classifier(image.shape[3], classes, protocol)
        steps = min(5000, max(protocol.steps, 5 * len(image) // protocol.batch))
        optimizer = torch.optim.AdamW(network.parameters(), lr=protocol.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, protocol.lr, total_steps=steps, pct_start=0.1)
        shift = np.random.default_rng(seed_of(protocol.seed, "shift"))
        batch = min(protocol.batch, len(image))
        for i in range(steps):
            rows = indices(protocol.seed, i, batch, len(image))
            by = shift.integers(-protocol.shift, protocol.shift + 1, 2)
            x = to_float(np.roll(image[rows], tuple(by), axis=(1, 2)))
            loss = F.cross_entropy(network(x)[1], torch.from_numpy(label[rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if i % 20 == 0 or i + 1 == steps:
                report("features", i + 1, steps, {"loss": float(loss.detach())})
    finally:
        torch.set_num_threads(threads)
    return network.eval()


@torch.no_grad()
def classify(network: Classifier, image: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (N, D) and class probabilities (N, K) of images (N, H, W, C) uint8."""
    feature, probability = [], []
    for start in range(0, len(image), 256):
        f, logits = network(to_float(image[start : start + 256]))
        feature.append(f.double().numpy())
        probability.append(logits.double().softmax(1).numpy())
    if not feature:
        return np.zeros((0, network.features.out_features)), np.zeros((0, network.logits.out_features))
    return np.concatenate(feature), np.concatenate(probability)

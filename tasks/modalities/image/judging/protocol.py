"""The protocol of an evaluation: all that a number depends on besides the model."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.tasks.modalities.image.judging import reading, recognition, scores
from tokenloom.tasks.modalities.image.judging.measures import Reference
from tokenloom.tasks.store.artifacts import StepSpec, Store


def protocol(step: StepSpec, store: Store, config: EvaluateConfig, reference: Reference, judged: scores.Judged | None) -> dict[str, Any]:
    """Two evaluations compare only when these agree."""
    dataset, image = store.record(reference.dataset), reference.image
    rows, columns, network = *image.shape[1:3], reference.network
    found: dict[str, Any] = {
        "version": step.version,
        "reference": {
            "dataset": dataset.artifact.fingerprint,
            "splits": ["validation", "test"],
            "images": len(image),
            "sha256": _hash(reference),
        },
        "image": {"size": rows if rows == columns else [rows, columns], "channels": image.shape[3], "fit": dataset.config["data"]["fit"]},
        "rounding": "uint8 = round((x + 1) * 127.5), no resize",
        "features": {
            "network": network.name,
            "artifact": step.inputs["features"].fingerprint,
            "sha256": hashlib.sha256((reference.network_folder / network.weights).read_bytes()).hexdigest()[:16],
            **({"resize": config.resize, "compared": config.reference} if network.published else {}),
            **({"bootstrap": config.bootstrap} if config.bootstrap else {}),
        },
        "text": reading.protocol(min(rows, columns)),
    }
    return found if judged is None else found | _of_samples(config, reference, judged)


def _hash(reference: Reference) -> str:
    """Of the held-out images one after another, and then their labels."""
    digest = hashlib.sha256()
    for start in range(0, len(reference.image), 1024):
        digest.update(reference.image[start : start + 1024].tobytes())
    digest.update(reference.label.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _of_samples(config: EvaluateConfig, reference: Reference, judged: scores.Judged) -> dict[str, Any]:
    counts = np.bincount(judged.sample_label, minlength=max(1, len(reference.names)))
    return {
        "samples": len(judged.sample),
        "class_balance": {"rule": config.labels, "least": int(counts.min()), "most": int(counts.max())},
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

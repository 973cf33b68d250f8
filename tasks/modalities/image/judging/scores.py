"""Numbers about samples: arrays and models in, named metrics out.

Shapes: N samples, M reference (real, held-out) images, T training images, H W C image rows, columns, channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.models.core.protocols import Batch, Conditions, Generator, Tokens
from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.modalities.image.judging import features, recognition

Images = NDArray[np.uint8]
Numbers = dict[str, float]
SIDE = 32  # pixels a side at which raw pixels are compared; larger images are averaged down


@dataclass
class Judged:
    """Samples with the real images that they are judged against; features are computed once and kept."""

    network: features.Classifier
    sample: Images
    sample_label: NDArray[np.int64]
    held_out: Images
    held_out_label: NDArray[np.int64]
    train_small: Images  # at most SIDE pixels a side
    train_label: NDArray[np.int64]
    nearest_index: NDArray[np.int64] | None = None
    _seen: dict[str, Any] = field(default_factory=dict)

    def seen(self, name: str, image: Images) -> tuple[NDArray, NDArray]:
        """Features and class probabilities of a set of images."""
        if name not in self._seen:
            self._seen[name] = features.classify(self.network, image)
        return self._seen[name]


def small(image_NHWC: Images, side: int = SIDE) -> Images:
    """Images averaged down to at most ``side`` pixels a side (as they are, if they are no larger)."""
    if max(image_NHWC.shape[1:3]) <= side or not len(image_NHWC):
        return image_NHWC
    sides = min(side, image_NHWC.shape[1]), min(side, image_NHWC.shape[2])
    parts = []
    for start in range(0, len(image_NHWC), 256):
        x = torch.from_numpy(image_NHWC[start : start + 256]).permute(0, 3, 1, 2).float()
        parts.append(F.adaptive_avg_pool2d(x, sides).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def sample_scores(judged: Judged, config: EvaluateConfig) -> Numbers:
    """Every metric of the samples that the protocol asks for."""
    selected: set[str] = set(config.metrics)
    result = Numbers()
    if selected & {"fd", "kid", "is"}:
        result |= _features(judged, selected, config)
    if selected & {"precision_recall", "density_coverage"}:
        result |= _manifold(judged, selected, config)
    if "recognition" in selected and len(np.unique(judged.train_label)) > 1:
        machine = recognition.train(judged.train_small, judged.train_label, config.seed)
        result["recognition"] = machine.accuracy(small(judged.sample), judged.sample_label)
        result["recognition_ceiling"] = machine.accuracy(small(judged.held_out), judged.held_out_label)
    if "memorisation" in selected:
        result |= _memorisation(judged)
    return result


def _features(judged: Judged, selected: set[str], config: EvaluateConfig) -> Numbers:
    name, result = features.NAME, Numbers()
    fake, probability = judged.seen("sample", judged.sample)
    real, _ = judged.seen("held_out", judged.held_out)
    if "fd" in selected:
        reference = metrics.moments(real)
        result[f"fd_{name}"] = metrics.frechet_distance(*reference, *metrics.moments(fake))
    if "kid" in selected:
        # blocks of at most half of a set, or they would all be the same
        kid = metrics.kernel_distance(real, fake, size=min(1000, min(len(real), len(fake)) // 2), seed=config.seed)
        result |= {f"kid_{name}": kid.mean, f"kid_{name}_deviation": kid.deviation}
    if "is" in selected:
        score = metrics.inception_score(probability)
        result |= {f"is_{name}": score.mean, f"is_{name}_deviation": score.deviation}
    return result


def manifold_reference(judged: Judged, count: int) -> tuple[Images, dict[str, int]]:
    """``count`` real images: held-out ones first, training images where those are too few; and how many of each."""
    held = small(judged.held_out)[_evenly(len(judged.held_out), count)]
    extra = judged.train_small[_evenly(len(judged.train_small), count - len(held))]
    return np.concatenate([held, extra]), {"held_out": len(held), "train": len(extra)}


def _evenly(total: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, total - 1, min(total, count)).round().astype(np.int64) if count > 0 and total else np.zeros(0, np.int64)


def _manifold(judged: Judged, selected: set[str], config: EvaluateConfig) -> Numbers:
    from sklearn.decomposition import PCA

    real = _flat(manifold_reference(judged, config.samples)[0])
    fake = _flat(small(judged.sample))
    projection = PCA(min(config.components, *real.shape), svd_solver="full").fit(real)
    real, fake, result = projection.transform(real), projection.transform(fake), Numbers()
    if "precision_recall" in selected:
        result["precision"], result["recall"] = metrics.precision_recall(real, fake, config.neighbours)
    if "density_coverage" in selected:
        result["density"], result["coverage"] = metrics.density_coverage(real, fake, config.neighbours)
    return result


def _memorisation(judged: Judged) -> Numbers:
    train = _flat(judged.train_small)
    distance, index = metrics.nearest(_flat(small(judged.sample)), train)
    held, _ = metrics.nearest(_flat(small(judged.held_out)), train)
    judged.nearest_index = index
    usual = float(np.median(held))
    return {
        "memorisation_ratio": float(np.median(distance)) / usual if usual > 0 else float(np.median(distance) > 0),
        "copies": float((distance == 0).mean()),
    }


def _flat(image: Images) -> NDArray[np.float64]:
    return image.reshape(len(image), -1) / 255.0


@torch.no_grad()
def likelihood(generator: Generator, tokens: list[Tokens], conditions: Conditions, values: int) -> Numbers:
    """Mean negative log-likelihood of held-out tokens under their conditions, in bits an image and an image value (``values`` = H W C).

    It measures the tokens, so it compares only generators of one tokenizer.
    """
    device = next(generator.parameters()).device
    total, start = 0.0, 0
    for part in tokens:
        rows = len(part.data)
        given = conditions.part(start, start + rows)
        total -= float(generator.log_prob(Batch(tokens=part, conditions=given).to(device)).double().sum())
        start += rows
    bits = total / max(start, 1) / math.log(2)
    return {"nll_bits_per_image": bits, "nll_bits_per_dim": bits / values}

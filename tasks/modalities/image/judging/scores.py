"""Numbers about samples: arrays and models in, named metrics out.

Shapes: N samples, M reference (real, held-out) images, T training images, H W C image rows, columns, channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.models.core.protocols import Batch, Conditions, Generator, Tokens
from tokenloom.tasks.evaluation import metrics
from tokenloom.tasks.modalities.image.judging import recognition
from tokenloom.tasks.modalities.image.judging.network import Network
from tokenloom.tasks.modalities.image.judging.statistics import Statistics
from tokenloom.tasks.runtime.errors import StepError

Images = NDArray[np.uint8]
Numbers = dict[str, float]
#: Metrics that compare features of the network (of the standard one the last two as well).
BY_FEATURES = {"fd", "sfid", "kid", "is", "precision_recall", "density_coverage"}
SIDE = 32  # pixels a side at which raw pixels are compared; larger images are averaged down


@dataclass
class Judged:
    """Samples with the real images that they are judged against; what the network tells of either is asked for once and kept."""

    network: Network
    sample: Images
    sample_label: NDArray[np.int64]
    held_out: Images
    held_out_label: NDArray[np.int64]
    train_small: Images  # at most SIDE pixels a side
    train_label: NDArray[np.int64]
    compared: Statistics | None = None  # what the samples' features are compared with; the held-out images' if not given
    drawn: Statistics | None = None  # of the samples, where the network has seen them as they were drawn
    nearest_index: NDArray[np.int64] | None = None

    @property
    def reference(self) -> Statistics:
        """What the features of the samples are compared with."""
        if self.compared is None:
            self.compared = Statistics.streamed(self.network.blocks(self.held_out))
        return self.compared

    @property
    def of_samples(self) -> Statistics:
        """What the network tells of the samples."""
        if self.drawn is None:
            self.drawn = Statistics.streamed(self.network.blocks(self.sample))
        return self.drawn

    @cached_property
    def sample_small(self) -> Images:
        """The samples at no more than SIDE pixels a side."""
        return small(self.sample)

    @cached_property
    def held_out_small(self) -> Images:
        """The held-out images at no more than SIDE pixels a side."""
        return small(self.held_out)


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
    if selected & {"fd", "sfid", "kid", "is"}:
        result |= _features(judged, selected, config)
    if selected & {"precision_recall", "density_coverage"}:
        result |= _manifold(judged, selected, config)
    if "recognition" in selected and len(np.unique(judged.train_label)) > 1:
        machine = recognition.train(judged.train_small, judged.train_label, config.seed)
        result["recognition"] = machine.accuracy(judged.sample_small, judged.sample_label)
        result["recognition_ceiling"] = machine.accuracy(judged.held_out_small, judged.held_out_label)
    if "memorisation" in selected:
        result |= _memorisation(judged)
    return result


def _features(judged: Judged, selected: set[str], config: EvaluateConfig) -> Numbers:
    network, result = judged.network, Numbers()
    fake, real = judged.of_samples, judged.reference
    if "fd" in selected:
        result |= _distances(network.metric("fd"), real, fake, config)
    if "sfid" in selected and fake.spatial is not None:
        if real.spatial is None:
            raise StepError("evaluate.reference: the file has no mu_s and sigma_s, which sfid is compared with; leave sfid out")
        result[network.metric("sfd")] = metrics.frechet_distance(*real.spatial, *fake.spatial)
    if "kid" in selected:
        kid, name = network.kernel(real.feature(), fake.feature(), config.seed), network.metric("kid")
        result |= {name: kid.mean, f"{name}_deviation": kid.deviation}
    if "is" in selected:
        score, name = network.score(fake.probability()), network.metric("is")
        result |= {name: score.mean, f"{name}_deviation": score.deviation}
    return result


def _distances(name: str, real: Statistics, fake: Statistics, config: EvaluateConfig) -> Numbers:
    """The Fréchet distance and, where they are asked for, its limit for infinitely many samples and its interval."""
    result = {name: metrics.frechet_distance(*real.moments, *fake.moments)}
    if config.extrapolate:
        result[f"{name}_infinity"] = metrics.frechet_at_infinity(*real.moments, fake.feature(), seed=config.seed)
    if config.bootstrap:
        low, high = metrics.frechet_interval(*real.moments, fake.feature(), config.bootstrap, seed=config.seed)
        result |= {f"{name}_low": low, f"{name}_high": high}
    return result


def manifold_reference(judged: Judged, count: int) -> tuple[Images, dict[str, int]]:
    """``count`` real images: held-out ones first, training images where those are too few; and how many of each."""
    held = judged.held_out_small[_evenly(len(judged.held_out), count)]
    extra = judged.train_small[_evenly(len(judged.train_small), count - len(held))]
    return np.concatenate([held, extra]), {"held_out": len(held), "train": len(extra)}


def _evenly(total: int, count: int) -> NDArray[np.int64]:
    return np.linspace(0, total - 1, min(total, count)).round().astype(np.int64) if count > 0 and total else np.zeros(0, np.int64)


def _manifold(judged: Judged, selected: set[str], config: EvaluateConfig) -> Numbers:
    """Of the standard network's features, as published; else of the pixels' principal components."""
    result = Numbers()
    if judged.network.published:
        real, fake = judged.reference.feature(), judged.of_samples.feature()
    else:
        real, fake = _components(judged, config)
    if "precision_recall" in selected:
        result["precision"], result["recall"] = metrics.precision_recall(real, fake, config.neighbours)
    if "density_coverage" in selected:
        result["density"], result["coverage"] = metrics.density_coverage(real, fake, config.neighbours)
    return result


def _components(judged: Judged, config: EvaluateConfig) -> tuple[NDArray, NDArray]:
    from sklearn.decomposition import PCA

    real, fake = _flat(manifold_reference(judged, config.samples)[0]), _flat(judged.sample_small)
    projection = PCA(min(config.components, *real.shape), svd_solver="full").fit(real)
    return projection.transform(real), projection.transform(fake)


def _memorisation(judged: Judged) -> Numbers:
    train = _flat(judged.train_small)
    distance, judged.nearest_index = _nearest(judged.sample_small, train)
    held, _ = _nearest(judged.held_out_small, train)
    usual = float(np.median(held))
    return {
        "memorisation_ratio": float(np.median(distance)) / usual if usual > 0 else float(np.median(distance) > 0),
        "copies": float((distance == 0).mean()),
    }


def _nearest(image: Images, train: NDArray[np.float64], rows: int = 4096) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distance to and index of the nearest training image of each image; so many at a time are numbers of 64 bits."""
    found = [metrics.nearest(_flat(image[start : start + rows]), train) for start in range(0, len(image), rows)]
    return np.concatenate([distance for distance, _ in found]), np.concatenate([index for _, index in found])


def _flat(image: Images) -> NDArray[np.float64]:
    return image.reshape(len(image), -1) / 255.0


@torch.no_grad()
def likelihood(generator: Generator, tokens: list[Tokens], conditions: Callable[[int, int], Conditions], values: int) -> Numbers:
    """Mean negative log-likelihood of held-out tokens under their conditions, in bits an image and an image value (``values`` = H W C).

    ``conditions`` gives those of the rows from a first to before a last.
    It measures the tokens, so it compares only generators of one tokenizer.
    """
    device = next(generator.parameters()).device
    total, start = 0.0, 0
    for part in tokens:
        rows = len(part.data)
        given = conditions(start, start + rows)
        total -= float(generator.log_prob(Batch(tokens=part, conditions=given).to(device)).double().sum())
        start += rows
    bits = total / max(start, 1) / math.log(2)
    return {"nll_bits_per_image": bits, "nll_bits_per_dim": bits / values}

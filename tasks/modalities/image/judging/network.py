"""The network whose features judge images: a classifier of the data, or Inception where its weights were imported.

Shapes: N images, D features, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from tokenloom.configs.schema import Resize
from tokenloom.models.parts.nets.classifier import load_classifier
from tokenloom.tasks.evaluation.metrics import PUBLISHED_SEED, Estimate, inception_score, kernel_distance
from tokenloom.tasks.modalities.image.judging import features, inception

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Seen:
    """Features (N, D) and class probabilities (N, K) of images, and the features by position (N, S) that sFID compares."""

    feature: NDArray
    probability: NDArray
    spatial: NDArray | None = None


class Network(ABC):
    """What a feature network tells of images, and what the numbers made with it are called."""

    #: File of its weights in the artifact's folder.
    weights: str
    #: In records.
    name: str
    #: Whether its numbers are the field's own.
    published: bool = False

    @abstractmethod
    def see(self, image_NHWC: Images) -> Seen:
        """Features of uint8 images."""

    def blocks(self, image_NHWC: Images, rows: int = 1024) -> Iterator[Seen]:
        """The same, block by block."""
        return (self.see(image_NHWC[start : start + rows]) for start in range(0, len(image_NHWC), rows))

    @abstractmethod
    def metric(self, kind: str) -> str:
        """Name of a number of this kind: fd, rfd, kid, is."""

    @abstractmethod
    def kernel(self, real: NDArray, fake: NDArray, seed: int) -> Estimate:
        """Kernel distance by the protocol of this network."""

    @abstractmethod
    def score(self, probability: NDArray) -> Estimate:
        """Inception score by the protocol of this network."""


class OfTheData(Network):
    """A classifier trained on the data: its numbers compare only with themselves, and are named so."""

    name, weights = features.NAME, "classifier.safetensors"

    def __init__(self, folder: Path) -> None:
        self.network = load_classifier(folder)

    def see(self, image_NHWC: Images) -> Seen:
        return Seen(*features.classify(self.network, image_NHWC))

    def metric(self, kind: str) -> str:
        return f"{kind}_{self.name}"

    def kernel(self, real: NDArray, fake: NDArray, seed: int) -> Estimate:
        # Blocks of at most half of a set, or they would all be the same.
        return kernel_distance(real, fake, size=min(1000, min(len(real), len(fake)) // 2), seed=seed)

    def score(self, probability: NDArray) -> Estimate:
        return inception_score(probability)


class Standard(Network):
    """Inception: its numbers carry the field's names where the resize is that of the published evaluators, else that of the resize."""

    name, weights, published = inception.NAME, inception.WEIGHTS, True
    names = {"fd": "fid", "rfd": "rfid", "sfd": "sfid"}

    def __init__(self, folder: Path, resize: Resize) -> None:
        self.network, self.resize = inception.load(folder), resize

    def see(self, image_NHWC: Images) -> Seen:
        return self.of(inception.features(self.network, image_NHWC, self.resize))

    @staticmethod
    def of(found: dict[str, NDArray[np.float32]]) -> Seen:
        """From the features by name that ``inception.features`` gives."""
        return Seen(found["2048"], softmax(found["logits"].astype(np.float64), axis=1), found["spatial"])

    def metric(self, kind: str) -> str:
        return self.names.get(kind, kind) + ("" if self.resize == "tensorflow" else f"_{self.resize}")

    def kernel(self, real: NDArray, fake: NDArray, seed: int) -> Estimate:
        return kernel_distance(fake, real, blocks=100, seed=np.random.RandomState(PUBLISHED_SEED))

    def score(self, probability: NDArray) -> Estimate:
        return inception_score(probability, order=np.random.RandomState(PUBLISHED_SEED).permutation(len(probability)))


def load(folder: Path, resize: Resize) -> Network:
    """The network of an artifact's folder."""
    return Standard(folder, resize) if (folder / inception.WEIGHTS).is_file() else OfTheData(folder)

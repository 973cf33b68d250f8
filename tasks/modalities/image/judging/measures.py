"""What images are judged by: the held-out data, and the numbers and pictures of samples, of codes and of likelihoods.

Shapes: N samples, M held-out images, H W C rows, columns, channels, S groups of codes, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig, Resize
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Conditions, Density, Generator, Tokenizer
from tokenloom.tasks.evaluation import metrics, plots
from tokenloom.tasks.evaluation.findings import Findings, Numbers, arrays, arrays_file
from tokenloom.tasks.modalities.image import pictures
from tokenloom.tasks.modalities.image.held_out import HELD_OUT, HeldOut
from tokenloom.tasks.modalities.image.judging import features, network, reading, reconstruction, scores
from tokenloom.tasks.modalities.image.judging.feature_actor import LEAST, features_of
from tokenloom.tasks.modalities.image.judging.sampling_actor import Samples
from tokenloom.tasks.modalities.image.judging.statistics import Statistics
from tokenloom.tasks.modalities.image.served.draw import to_uint8
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.serving.predict import spread
from tokenloom.tasks.serving.request import ConditionSpec, Request
from tokenloom.tasks.store.artifacts import Artifact, Store

TRAIN_LIMIT = 20_000  # training images that nearest neighbours are looked for in
NEAREST = 20  # samples shown beside their nearest training images
SHOWN = 20  # held-out images shown beside their reconstructions
COLUMN = "column_"  # the picture of samples below what a column of the data gave them: this and its name
RECONSTRUCTIONS = "reconstructions.npz"  # the same as arrays ``original`` and ``decoded``, for a comparison of tokenizers


@dataclass(frozen=True)
class Reference:
    """What every model on a dataset is judged against: all its held-out images (M, H, W, C) uint8, and the network that compares."""

    dataset: Artifact
    names: list[str]
    image: scores.Images
    label: NDArray[np.int64]
    network_folder: Path
    resize: Resize = "tensorflow"
    told: Callable[[Sequence[str]], Iterator[dict[str, NDArray[np.float32]]]] | None = None  # of many images' features, by actors

    @classmethod
    def of(
        cls, store: Store, dataset: Artifact, network: Artifact, config: EvaluateConfig, cluster: ClusterConfig | None = None
    ) -> Reference:
        """The held-out splits of a dataset.

        Raises:
            StepError: they are too few to judge by.
        """
        image, label = features.read_images(store, dataset, HELD_OUT)
        if len(image) < config.neighbours + 2:
            raise StepError(f"dataset {dataset.id}: {len(image)} held-out images are too few to judge by; raise data.validation")

        def told(splits: Sequence[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
            assert cluster is not None
            return features_of(store, dataset, splits, network, config.resize, cluster)

        names, folder = list(store.record(dataset).notes["classes"]), store.fetch(network)
        return cls(dataset, names, image, label, folder, config.resize, None if cluster is None else told)

    @cached_property
    def network(self) -> network.Network:
        """The network whose features are compared."""
        return network.load(self.network_folder, self.resize)

    @cached_property
    def held_out(self) -> Statistics:
        """What the network tells of the held-out images."""
        if self._by_actors(len(self.image)):
            return self._told(HELD_OUT, keep=True)
        return Statistics.streamed(self.network.blocks(self.image))

    def _by_actors(self, count: int) -> bool:
        return self.told is not None and self.network.published and count >= LEAST

    def _told(self, splits: Sequence[str], keep: bool) -> Statistics:
        assert self.told is not None
        return Statistics.streamed(map(network.Standard.of, self.told(splits)), keep)

    def statistics(self, given: str, store: Store, keep: bool) -> Statistics:
        """What features are compared with: those of the held-out images, ``train`` the training split's, else a file's.

        Args:
            keep: whether the features themselves are needed, beside their sums.
        """
        if given == "held_out":
            return self.held_out
        if given == "train":
            if self._by_actors(len(features.selected(store, self.dataset, ["train"], None)[1])):
                return self._told(["train"], keep)
            return Statistics.streamed(map(self.network.see, features.read_blocks(store, self.dataset, ["train"])), keep)
        return Statistics.read(Path(given), self.network)


@dataclass(frozen=True)
class EvaluationRequest:
    """The samples of an evaluation: ``labels`` (N,) in turn over the classes and, of a model of more than classes, a held-out image each
    (-1: none) whose captions and columns they share."""

    labels: NDArray[np.int64]
    held_out: HeldOut | None = None
    item_N: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, condition_spec: ConditionSpec, reference: Reference, config: EvaluateConfig, store: Store) -> EvaluationRequest:
        """The request of a protocol to a model.

        Raises:
            ConfigError: the data lacks a column that the model takes.
        """
        labels = spread(config.samples, len(reference.names))
        if config.labels == "random":
            labels = np.random.default_rng(config.seed).integers(len(reference.names), size=config.samples)
        if condition_spec.inputs == ("class_id",):
            return cls(labels)
        held_out = HeldOut.of(condition_spec, store, reference.dataset)
        return cls(labels, held_out, held_out.in_turn(labels))

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Request:
        """What is asked for samples ``start:stop``."""
        if self.held_out is None or self.item_N is None:
            return Request(self.labels[start:stop])
        return self.held_out.request(self.item_N[start:stop], self.labels[start:stop])

    def of_held_out(self, reference: Reference, start: int, stop: int) -> Request:
        """The conditions of the held-out images ``start:stop`` themselves."""
        if self.held_out is None:
            return Request(reference.label[start:stop])
        return self.held_out.request(np.arange(start, min(stop, len(reference.label))), reference.label[start:stop])

    @property
    def texts(self) -> list[str] | None:
        """A text each, of a model of texts."""
        return None if self.held_out is None or self.held_out.texts is None else list(self.part(0, len(self)).texts or ())

    def shown(self, index: NDArray[np.int64]) -> dict[str, NDArray[np.uint8]]:
        """The columns of some samples by name, as images (S, H, W, C)."""
        if self.held_out is None or self.item_N is None:
            return {}
        columns = self.held_out.request(self.item_N[index], self.labels[index]).columns
        return {name: to_uint8(values.value) for name, values in columns.items()}


def judge_samples(
    drawn: Samples, request: EvaluationRequest, reference: Reference, config: EvaluateConfig, store: Store, compared: str
) -> tuple[scores.Judged, Findings]:
    """Numbers and pictures of samples, their features compared with ``Reference.statistics(compared)``."""
    train, train_label = features.read_images(store, reference.dataset, ["train"], TRAIN_LIMIT, scores.small)
    asked = set(config.metrics)
    keep, wanted = bool(asked & {"kid", "precision_recall", "density_coverage"}), bool(asked & scores.BY_FEATURES)
    statistics = reference.statistics(compared, store, keep) if wanted else None
    seen = None if drawn.features is None else Statistics.streamed(map(network.Standard.of, drawn.features()))
    given = (reference.image, reference.label, train, train_label, statistics, seen)
    judged = scores.Judged(reference.network, drawn.image, request.labels, *given)
    found = Findings({**drawn.numbers, **scores.sample_scores(judged, config)})
    found.pictures |= sample_pictures(judged, reference.names, request.texts)
    for name, column in request.shown(shown := evenly(len(drawn.image), NEAREST)).items():
        found.pictures[f"{COLUMN}{name}"] = pictures.pairs(column, drawn.image[shown], (name, "sample"))
    texts = {} if request.texts is None else {"texts": np.array(request.texts)}
    found.files["samples.npz"] = arrays_file(store.root / "scratch", images=drawn.image, labels=request.labels, **texts)
    return judged, found


def generator_likelihood(
    generator: Generator, condition_spec: ConditionSpec, coded: reconstruction.Coded, request: EvaluationRequest, reference: Reference
) -> Numbers:
    """Bits to code the held-out images' tokens, where the generator has a likelihood."""
    if generator.likelihood != "exact":
        return {}

    def conditions(start: int, stop: int) -> Conditions:
        return condition_spec.conditions(request.of_held_out(reference, start, stop))

    return scores.likelihood(generator, coded.tokens, conditions, int(np.prod(reference.image.shape[1:])))


@torch.no_grad()
def density_likelihood(density: Density, reference: Reference, seed: int, rows: int = 100) -> Numbers:
    """Bits to code the held-out images themselves, a value: the negative log-likelihood, or an upper bound of it."""
    device, total = reconstruction.device_of(density), 0.0
    for start in range(0, len(reference.image), rows):
        signal = features.to_float(reference.image[start : start + rows]).to(device)
        draws = Draws.whole(seed, start, len(signal), device=device, stream="likelihood")
        total += float(density.bits_per_dimension(density.log_prob(Batch(signal), draws)).double().sum())
    bits = total / len(reference.image)
    return {"nll_bits_per_dim" if density.likelihood == "exact" else "bound_bits_per_dim": bits}


def judge_codes(tokenizer: Tokenizer, coded: reconstruction.Coded, reference: Reference, config: EvaluateConfig) -> Findings:
    """Numbers and pictures of what a tokenizer keeps of the held-out images."""
    found = Findings()
    if "reconstruction" in config.metrics:
        found.numbers |= reconstruction.reconstruction_scores(reference.network, reference.held_out, reference.image, coded)
        found.numbers |= reconstruction.cost_scores(coded)
        count_SK, rows = reconstruction.code_counts(coded.tokens)
        if rows:
            found.numbers |= reconstruction.codebook_scores(count_SK, coded.layout.codebooks)
            use = [(metrics.usage(c), metrics.perplexity(c)) for c in count_SK]
            found.pictures["codebook"] = plots.codebook(count_SK, rows, [u for u, _ in use], [p for _, p in use])
    size, columns, channels = reference.image.shape[1:]
    if "text" in config.metrics and size != columns:
        found.notes |= {"skipped": [f"text is not measured: words are drawn into square images, these are {size}x{columns}"]}
    elif "text" in config.metrics:
        dark = bool(reference.image.mean() < 128)
        read, both, why = reading.preservation(reconstruction.through(tokenizer), size, channels, dark=dark)
        found.numbers |= read
        found.pictures["text"] = pictures.pairs(both[0, :20], both[1, :20], ("text", "decoded"))
        found.notes |= {"skipped": [why]} if why else {}
    shown = evenly(len(reference.image), SHOWN)
    original, decoded = reference.image[shown], coded.image[shown]
    found.pictures["reconstructions"] = pictures.pairs(original, decoded, ("original", "decoded"))
    found.arrays[RECONSTRUCTIONS] = arrays(original=original, decoded=decoded)
    return found


def evenly(total: int, most: int) -> NDArray[np.int64]:
    """At most this many numbers below ``total``, evenly spread."""
    return np.linspace(0, total - 1, min(most, total)).astype(np.int64)


def sample_pictures(judged: scores.Judged, names: list[str], texts: list[str] | None) -> dict[str, bytes]:
    """Samples by class, or by text; and beside their nearest training images."""
    shown = evenly(len(judged.sample), NEAREST)
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

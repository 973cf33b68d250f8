"""What a kind of signal offers the pipeline: the only things that loader, ingest, extract, evaluate, register and serving know of it.

Shapes: N items of a shard, B rows, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from tokenloom.models.core.augmentation import Augmentation
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import SignalSpec
from tokenloom.tasks.runtime.errors import ArtifactError

if TYPE_CHECKING:  # training and loading import this file on machines that have torch, numpy and pyarrow alone
    from tokenloom.configs.schema import ClusterConfig, DataConfig, EvaluateConfig, RunConfig
    from tokenloom.tasks.data.listing import Item, Source
    from tokenloom.tasks.runtime.progress import Report
    from tokenloom.tasks.serving.predict import Pair
    from tokenloom.tasks.store.artifacts import Artifact, Outcome, Record, StepSpec, Store, Work


@dataclass(frozen=True)
class Fitted:
    """A usable item: the values of the kind's columns, a hash of the signal, class number, hash of the raw content."""

    columns: Mapping[str, Any]
    content: bytes
    label: int
    digest: str
    read: int = 0  # bytes of the raw item


@dataclass(frozen=True)
class Rejected:
    """An item that cannot be used, and why; ``retry`` where it could not be read now, which says nothing about its content."""

    reason: str
    digest: str = ""
    retry: bool = False
    read: int = 0


@dataclass(frozen=True)
class Served:
    """A served model's interface: MLflow types of its columns and parameters, an example, the file that MLflow runs, packages it needs."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    params: Mapping[str, tuple[str, Any]]
    example: Mapping[str, Any]
    code: Path
    packages: Sequence[str]
    rooms: Sequence[Path] = field(default_factory=tuple)  # folders under ``tasks`` that travel with it besides ``serving``


@dataclass(frozen=True)
class Card:
    """Sentences of a model card: what it makes, its items and how they were fitted, protocol, commands, interface, limits."""

    makes: str
    items: str
    protocol: str
    commands: Sequence[str]
    interface: str
    limits: str
    shown: Sequence[str] = ()  # metrics of its table, in order: names, or beginnings that end in ``_``
    remarks: Sequence[str] = ()  # below the table


@dataclass(frozen=True)
class Comparison:
    """How a leaderboard shows the runs of a kind; metrics are names, or beginnings that end in ``_``."""

    headline: Sequence[str]  # what ranks: the first of these that all runs have, best first
    columns: Sequence[str]  # in the order in which they are shown, where there are values
    speed: str  # what quality is plotted against
    within_tokenizer: Sequence[str] = ()  # metrics that compare only between runs of one tokenizer
    of_samples: Sequence[str] = ()  # parts of the protocol that tokenizers alone do not have
    budget: str = ""  # within which tokenizers are ranked


@dataclass(frozen=True)
class SampleRequest:
    """What ``tokenloom sample`` asks of a model: how many, from which seed, and what of; kinds refuse what they do not know."""

    out: Path
    total: int
    seed: int = 0
    classes: Sequence[int] | None = None
    texts: Sequence[str] | None = None
    history: Path | None = None
    horizon: int | None = None
    columns: Mapping[str, Sequence[Path]] = field(default_factory=dict)  # files of further columns, by name
    inpaint: tuple[Path, Path] | None = None  # an image, and a mask that is white where it is drawn anew
    prefix: int | None = None  # how many tokens are drawn and decoded, the first ones
    prompts: Path | None = None  # a benchmark's file of prompts; ``out`` is then a folder in its layout
    rewrites: Path | None = None  # texts that are drawn in the place of prompts
    each: int | None = None  # images a prompt; the benchmark's own number if not given


class Modality(ABC):
    """A kind of signal; each has one room here, whose module or package holds it as ``MODALITY``."""

    kind: str
    #: What its items are called, several of them.
    noun: str = "items"
    #: What each entry of ``evaluate.metrics`` measures; what a reader should know of metrics that only this kind has.
    measured: Mapping[str, tuple[str, ...]]
    meanings: tuple[tuple[str, str, str], ...]
    comparison: Comparison
    #: The kind's columns of a dataset shard, beside key, label, caption and source.
    columns: tuple[tuple[str, pa.DataType], ...]
    #: Whether items are stored encoded, and how many uniform numbers vary one (0: this kind is not varied).
    encodes: bool = False
    draws: int = 0
    #: Whether samples are judged by a network that the step ``features`` trains on the data.
    needs_features: bool = True
    #: What of a run can be judged: what it ends with is refused, before work, where it is not among these.
    judges: tuple[str, ...] = ("generator", "density", "tokenizer")

    @abstractmethod
    def spec(self, config: DataConfig) -> SignalSpec:
        """The signal that a run file asks for; raises ``ConfigError`` for a value that this kind cannot use."""

    def least_held_out(self, config: EvaluateConfig) -> int:
        """Held-out items without which nothing can be judged under this protocol."""
        return 1

    def check(self, config: RunConfig) -> None:
        """Refuse, before any step of the run works, models that cannot be judged or served on this data; raises ``ConfigError``."""
        return None

    @abstractmethod
    def open_source(self, config: DataConfig) -> Source:
        """The source that a run file names; raises ``ConfigError`` for one that is unknown, missing or empty."""

    @abstractmethod
    def fit(self, item: Item, config: DataConfig, classes: Mapping[str, int]) -> Fitted | Rejected:
        """Read, check and fit one item; every failure becomes a reason."""

    @abstractmethod
    def notes(self, config: DataConfig, source: Source) -> dict[str, Any]:
        """What the dataset's record notes of the signal, ``signal`` among it (records without one are of square images)."""

    @abstractmethod
    def read(self, raw: bytes, where: str, shape: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Stored items (N, …) and labels int32 (N,) of a shard's Parquet bytes; with a ``shape``, of items that are stored larger, what
        stands for the signal.

        Raises:
            ArtifactError: a damaged shard.
            MixedSizesError: items of different sizes.
        """

    def encoded(self, raw: bytes, where: str) -> tuple[list[bytes], np.ndarray]:
        """The same as encoded items, of a kind that ``encodes``; they are decoded when they are asked for."""
        raise ArtifactError(f"{where}: items of kind {self.kind} are stored as they are")

    def items(
        self,
        stored: np.ndarray | Sequence[bytes],
        shape: Any = None,
        augmentation: Augmentation | None = None,
        u_BN: np.ndarray | None = None,
        pool: Executor | None = None,
    ) -> np.ndarray:
        """Items (B, …) of a batch from stored ones, decoded (B, …) or encoded, of the signal's ``shape``.

        Args:
            augmentation: how they are varied, of a kind that has ``draws``; ``u_BN`` are that many uniform numbers of each row.
            pool: threads that may share the rows.
        """
        assert isinstance(stored, np.ndarray), "this kind has no encoded items"
        return stored

    @abstractmethod
    def tensor(self, data: np.ndarray | Tensor) -> Tensor:
        """Stored items (B, …) as the signal (B, C, *shape), float32, on the device where they are."""

    def view(self, signal: Tensor, name: str) -> Tensor:
        """One form of the signal that is tokenized; raises ``ConfigError`` for one that this kind does not have."""
        if name != "plain":
            raise ConfigError(f"extract.views: {self.kind} has the view plain alone, got {name}")
        return signal

    def parse_views(self, views: Sequence[str]) -> tuple[str, ...]:
        """The names of all views; raises ``ConfigError`` for an unknown one."""
        if list(views) != ["plain"]:
            raise ConfigError(f"extract.views={list(views)}: {self.kind} has the view plain alone")
        return ("plain",)

    def column(self, value: bytes) -> np.ndarray:
        """The stored form of one item of a further column (``data.columns``); ``fit`` made the bytes.

        Raises:
            ConfigError: this kind has no further columns.
        """
        raise ConfigError(f"data.columns: items of kind {self.kind} have no further columns")

    def picture(self, drawn: Tensor) -> bytes | None:
        """PNG of what a model draws to show its progress in training; None for a kind that shows none."""
        return None

    def plan_features(self, dataset: Artifact, config: EvaluateConfig, store: Store) -> StepSpec:
        """The step that trains the network by which samples are judged (``needs_features``); raises ``ConfigError``."""
        raise ConfigError(f"data.kind={self.kind}: it is judged without a network")

    def features(self, step: StepSpec, store: Store, report: Report) -> Outcome:
        """Train that network, or find it."""
        raise ConfigError(f"data.kind={self.kind}: it is judged without a network")

    def import_network(self, name: str, weights: Path, store: Store) -> Outcome | None:
        """The published network of this name, by which samples are judged, as an artifact; None if this kind knows none.

        Raises:
            ConfigError: a file that does not hold it.
        """
        return None

    @abstractmethod
    def sample(self, pair: Pair, title: str, request: SampleRequest, store: Store, report: Report) -> dict[str, Any]:
        """Draw samples for people and write them (``tokenloom sample``); what was drawn, as plain data.

        Raises:
            ConfigError: a request that this kind or model cannot follow.
        """

    def side_by_side(self, store: Store, judged: Sequence[tuple[str, Artifact]]) -> dict[str, bytes]:
        """Pictures of a comparison, by file name, of runs by name with their evaluations."""
        return {}

    @abstractmethod
    def judge(self, step: StepSpec, store: Store, cluster: ClusterConfig, report: Report, work: Work) -> dict[str, Any]:
        """Sample, measure and draw: the metrics, with pictures (``samples.png`` among them), report and notes put into ``work``."""

    @abstractmethod
    def served(self, pair: Pair, dataset: Record) -> Served:
        """What a registered model of this kind takes and gives."""

    def web(self, pair: Pair, title: str, rows: int, waiting: int) -> Any:
        """The ASGI application of ``tokenloom serve-model``: ``rows`` of the net in a pass, at most so many requests ``waiting``.

        Raises:
            ConfigError: models of this kind have no server of their own, or a number out of range.
        """
        raise ConfigError(f"{title}: models of {self.kind} are served by `mlflow models serve` alone")

    def serving(self, dataset: Record) -> dict[str, Any]:
        """What a served model has to know of the data, kept in its ``serving.json``."""
        return {}

    @abstractmethod
    def card(self, dataset: Record, evaluation: Record, texts: Sequence[str]) -> Card:
        """What the model card says of a model of this kind; ``texts`` are captions as in its data, if it takes texts."""

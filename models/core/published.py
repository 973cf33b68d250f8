"""Published sizes and trainings as values: what the authors of a method released, and how they trained it.

A recipe declares them (``register(…, sizes=…)``); ``args: {size: L}`` then gives the published model, ``train: {as: paper}`` its
training.  What no source says is None: a recipe does not guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.settings import TrainSettings

#: Images of ImageNet's training set (ILSVRC 2012), which epochs of the published trainings count.
IMAGENET = 1_281_167

#: Where a number is from: the official class built or read, its weights, its documentation, or the paper.
Mark = Literal["code", "measured", "derived", "readme", "paper", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a published model was trained.

    Args:
        settings: the training in this project's settings; shares of the steps where a source counts steps or epochs.
        lr_batch: the global batch that the learning rates refer to; None: no source says so, and another batch rescales nothing.
        unknown: fields of ``settings`` (``batch``, ``optimizer.lr``) that no source says: a run has to give them.
        augmentation: views of the training images, as the sources name them.
        departs: in words, what of the published training these settings do not have.
        images: of the training set, which epochs count.
    """

    settings: TrainSettings
    lr_batch: int | None = None
    unknown: tuple[str, ...] = ()
    augmentation: tuple[str, ...] = ()
    departs: tuple[str, ...] = ()
    images: int = IMAGENET

    def given(self, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The fields of ``TrainSettings`` for a run that changes some of them.

        A changed batch rescales the learning rates that refer to the published one; steps that are given replace its epochs.

        Raises:
            ConfigError: a field that no source says and the run does not give.
        """
        for name in self.unknown:
            value: Any = changes
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is None:
                raise ConfigError(f"{where}.{name}: no source says this field of the published training; give it")
        scale = changes["batch"] / self.settings.batch if self.lr_batch and _positive(changes.get("batch")) else 1.0
        fields = _merged(_rescaled(self.settings, scale), changes)
        if "epochs" in changes or self.settings.epochs is None:
            return fields
        return fields | ({"epochs": None} if "steps" in changes else {})


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _rescaled(settings: TrainSettings, scale: float) -> dict[str, Any]:
    fields = asdict(settings)
    for each in (fields["optimizer"], *fields["phases"].values()):
        each["lr"] *= scale
    return fields


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = [name for name in changes if isinstance(changes[name], Mapping) and isinstance(fields.get(name), Mapping)]
    return {**fields, **changes, **{name: _merged(fields[name], changes[name]) for name in both}}


@dataclass(frozen=True, kw_only=True)
class Size:
    """One published model of a recipe.

    Args:
        name: the paper's dial, as a run file writes it: ``L``, ``d16``.
        args: the recipe's arguments of this size.
        published: its name in the tables of published facts, where the dial alone would not tell it apart.
        parameters: of the official model, exactly; None if no source has them.  ``mark`` says where the number is from.
        layout: the tokens that a generator was trained on.
        tokens: of one image; of a generator those of its layout if not given, which may store more than a sample takes.
        image: rows and columns of the images, in pixels.
        classes: that the model is conditioned on.
        codec: recipe and arguments of the tokenizer that it was published on (of a tokenizer: of its base).
        excludes: in words, what the published number leaves out or counts besides trainable weights; ``without`` are beginnings of
            names of trainable parameters that it leaves out, ``fixed`` those of buffers and frozen parameters that it counts.
        checkpoints: names of the published files.
        headline: the number that the authors report, with its metric.
        training: how it was trained.
    """

    name: str
    args: Mapping[str, Any]
    published: str = ""
    parameters: int | None
    mark: Mark = "code"
    layout: TokenLayout | None = None
    tokens: int | None = None
    image: int = 256
    classes: int = 1000
    codec: tuple[str, Mapping[str, Any]] | None = None
    excludes: str = ""
    without: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    headline: str = ""
    training: Training | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.tokens is None:
            object.__setattr__(self, "tokens", self.layout.length)

    @property
    def key(self) -> str:
        """Its name in the tables of published facts."""
        return self.published or self.name

    @property
    def flops(self) -> float | None:
        """Training compute, estimated: 6 FLOPs for each parameter, token and image seen (arXiv:2001.08361, section 2.1)."""
        train = self.training
        if train is None or self.parameters is None or self.tokens is None or {"epochs", "steps", "batch"} & set(train.unknown):
            return None
        settings = train.settings.on(train.images)
        return 6.0 * self.parameters * self.tokens * settings.steps * settings.batch

    def to_dict(self) -> dict[str, Any]:
        """Plain data for tables; ``name`` is that of the published tables, ``size`` the dial."""
        return {
            "name": self.key,
            "size": self.name,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "training_flops": self.flops,
            "image": self.image,
            "checkpoints": list(self.checkpoints),
            "headline": self.headline,
            "excludes": self.excludes,
        }


def grid(side: int, vocabulary: int, **more: Any) -> TokenLayout:
    """The tokens of one square grid."""
    return TokenLayout(grids=((side, side),), vocabulary=vocabulary, **more)

"""Published sizes and trainings as values: what the authors of a method released, and how they trained it.

A recipe declares them (``register(…, sizes=…)``); ``args: {size: L}`` then gives the published model, ``train: {as: paper}`` its
training.  What no source says is None: a recipe does not guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenloom.models.core.layout import TokenLayout

#: Images of ImageNet's training set (ILSVRC 2012), which epochs of the published trainings count.
IMAGENET = 1_281_167

#: Where a number is from: the official class built or read, its weights, its documentation, or the paper.
Mark = Literal["code", "measured", "derived", "readme", "paper", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a published model was trained; None is what no source says, and a run then has to give it.

    ``lr`` is the peak at a global batch of ``batch`` images; it refers to ``lr_batch`` (None: no source says to which), so only
    then may another batch rescale it.  ``warmup``, ``hold`` and ``cycle`` are in epochs if ``epochs`` are given, else in steps.
    """

    batch: int | None
    epochs: float | None = None
    steps: int | None = None
    lr: float | None
    lr_batch: int | None = None
    betas: tuple[float, float] | None
    eps: float = 1e-8
    weight_decay: float | None
    weight_decay_end: float | None = None  # where it ends, by a cosine over the training; None: it stays
    exempt: tuple[str, ...] | None = ("vectors",)  # from weight decay: "vectors" and parts of names; () none
    clip: float | None
    warmup: float | None = 0.0
    schedule: Literal["constant", "linear", "cosine", "steps"] | None
    hold: float = 0.0  # share of the rest after the warm-up at the peak, before the schedule begins
    final: float = 0.0  # last learning rate as a share of the peak
    ema: float | None = 0.0
    precision: Literal["float32", "float16", "bfloat16"] | None
    augmentation: tuple[str, ...] = ()
    images: int = IMAGENET


@dataclass(frozen=True, kw_only=True)
class Size:
    """One published model of a recipe.

    Args:
        name: the paper's dial, as a run file writes it: ``L``, ``d16``.
        args: the recipe's arguments of this size.
        published: its name in the tables of published facts, where the dial alone would not tell it apart.
        parameters: of the official model, exactly; None if no source has them.  ``mark`` says where the number is from.
        layout: the tokens that a generator was trained on.
        tokens: of one image, of a tokenizer; a generator's layout has them.
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
        if self.layout is not None:
            object.__setattr__(self, "tokens", self.layout.length)

    @property
    def key(self) -> str:
        """Its name in the tables of published facts."""
        return self.published or self.name

    @property
    def flops(self) -> float | None:
        """Training compute, estimated: 6 FLOPs for each parameter, token and image seen (arXiv:2001.08361, section 2.1)."""
        train = self.training
        if train is None or self.parameters is None or self.tokens is None:
            return None
        seen = train.epochs * train.images if train.epochs is not None else train.steps and train.batch and train.steps * train.batch
        return 6.0 * self.parameters * self.tokens * seen if seen else None

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

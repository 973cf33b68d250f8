"""Settings of training and sampling as frozen dataclasses; each field is marked Identity or Execution.

They are plain dataclasses, so that the loop runs where pydantic is not installed; the run file's schema
embeds them, and pydantic checks them there (``__pydantic_config__`` forbids unknown keys).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from tokenloom.models.core.augmentation import Augmentation
from tokenloom.models.core.config import Added, ConfigError, Execution, Identity
from tokenloom.models.core.limits import Range, check_number

#: Of settings that are counted in steps and rows; what relates several of them stands with the settings.
_RANGES = {
    **dict.fromkeys(("steps", "log_every", "validate_every", "checkpoint_every", "sample_every", "keep_every"), Range(0, 1 << 31)),
    **dict.fromkeys(("batch", "micro_batch", "window"), Range(0, 1 << 24)),
    "seed": Range(-(1 << 63), (1 << 63) - 1),
    **dict.fromkeys(("workers", "threads", "max_failures", "prefetch", "decoders"), Range(-1, 1 << 16)),
    **dict.fromkeys(("cache_gb", "decoded_gb"), Range(0, 1e9)),
    **dict.fromkeys(("betas", "warmup", "warmup_from", "hold", "restarts", "final", "ema"), Range(0, 1)),
    "clip": Range(0, 1e6),  # 0 is off
}


def _check_ranges(settings: Any, where: str) -> None:
    for each in fields(settings):
        check_number(each.name, getattr(settings, each.name), f"{where}.{each.name}", _RANGES)


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Adam with a learning rate that warms up linearly, holds, and then follows its schedule; shares are of all steps of a training."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    kind: Added[Literal["adamw", "adam"]] = "adamw"  # adam: weight decay joins the gradient
    lr: Identity[float] = 1e-3
    betas: Identity[tuple[float, float]] = (0.9, 0.95)
    eps: Added[float] = 1e-8
    weight_decay: Identity[float] = 0.05
    weight_decay_end: Added[float | None] = None  # reached from weight_decay by a cosine; None: it stays
    exempt: Added[tuple[str, ...] | None] = None  # from weight decay: vectors, or a part of a name; None: as the model has it
    clip: Identity[float] = 1.0
    warmup: Identity[float] = 0.02  # share of the steps
    warmup_from: Added[float] = 0.0  # first learning rate of the warm-up as a share of lr
    hold: Added[float] = 0.0  # share of the steps after the warm-up that stay at lr before the schedule begins
    schedule: Identity[Literal["constant", "linear", "cosine", "drops", "inverse_sqrt"]] = "cosine"
    final: Identity[float] = 0.05  # last learning rate as a share of lr
    drops: Added[tuple[tuple[float, float], ...]] = ()  # of the schedule drops: (share of the steps, share of lr from there on)
    restarts: Added[tuple[float, ...]] = ()  # shares of the steps at which warm-up, hold and schedule begin anew

    def __post_init__(self) -> None:
        _check_ranges(self, "optimizer")
        if self.lr <= 0:
            raise ConfigError(f"optimizer.lr={self.lr}: must be positive")
        if self.clip < 0 or not 0 <= self.warmup < 1:
            raise ConfigError(f"optimizer.clip={self.clip}, warmup={self.warmup}: clip >= 0 (0 is off), 0 <= warmup < 1")
        for name in ("warmup_from", "hold"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)}: must be in [0, 1)")
        for name, shares in (("restarts", self.restarts), ("drops", tuple(share for share, _ in self.drops))):
            if list(shares) != sorted(set(shares)) or any(not 0 < share < 1 for share in shares):
                raise ConfigError(f"optimizer.{name}={getattr(self, name)}: give shares of the steps that grow, between 0 and 1")
        if (self.schedule == "drops") != bool(self.drops):
            raise ConfigError(f"optimizer.schedule={self.schedule}, drops={self.drops}: schedule drops and its drops go together")
        if self.schedule == "inverse_sqrt" and self.warmup <= 0:
            raise ConfigError(f"optimizer.warmup={self.warmup}: schedule inverse_sqrt falls from the end of a warm-up; give one")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run: what shapes the weights (Identity) and how it is carried out (Execution).

    ``phases`` are optimizers of single phases of a method (a tokenizer's ``discriminator``); the others have ``optimizer``.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    steps: Identity[int] = 0  # needed where no epochs are given
    epochs: Added[float | None] = None  # passes over the training items, whatever views there are of each; outranks steps
    batch: Identity[int] = 64  # rows of the global batch, over all workers
    seed: Identity[int] = 0
    precision: Identity[Literal["float32", "bfloat16", "float64"]] = "float32"
    optimizer: Identity[OptimizerSettings] = field(default_factory=OptimizerSettings)
    phases: Added[dict[str, OptimizerSettings]] = field(default_factory=dict)
    ema: Identity[float] = 0.0  # decay per step; 0 is off
    augment: Added[Augmentation | None] = None  # how items of the data vary from step to step
    keep: Added[Literal["last", "best"]] = "last"  # the weights that are kept: of the last step, or of the lowest validation loss
    window: Added[int] = 0  # so many shards' rows are mixed at a time, for data larger than a node's cache; 0: all rows
    source: Execution[str] = ""  # whose training this is: "paper" where a run file says ``as: paper``
    on_nan: Execution[Literal["stop"]] = "stop"
    checkpoint_every: Execution[int] = 200
    validate_every: Execution[int] = 200
    sample_every: Execution[int] = 0  # 0: only at the end
    log_every: Execution[int] = 20
    keep_every: Execution[int] = 0  # keep each N-th checkpoint for good; 0 keeps last and best

    def __post_init__(self) -> None:
        _check_ranges(self, "train")
        if self.epochs is not None:
            if self.epochs <= 0:
                raise ConfigError(f"train.epochs={self.epochs}: must be positive")
            object.__setattr__(self, "steps", 0)
        elif self.steps < 1:
            raise ConfigError(f"train.steps={self.steps}: must be at least 1; give steps or epochs")
        for name in ("batch", "checkpoint_every", "validate_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"train.ema={self.ema}: must be in [0, 1)")

    def on(self, items: int) -> TrainSettings:
        """These settings for so many training items: epochs as steps."""
        return self if self.epochs is None else replace(self, epochs=None, steps=max(1, round(self.epochs * items / self.batch)))

    def of(self, phase: str) -> OptimizerSettings:
        """The optimizer of a phase."""
        return self.phases.get(phase, self.optimizer)


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Where training runs; nothing here enters a fingerprint."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    workers: Execution[int] = 2
    threads: Execution[int] = 1  # torch threads of each worker
    device: Execution[Literal["auto", "cpu", "cuda"]] = "auto"
    micro_batch: Execution[int] = 0  # rows a rank passes through the model at once; 0: its whole share
    compile: Execution[bool | Literal["auto"]] = False  # auto: where the run is long enough; decided once, stored, obeyed when it goes on
    sharding: Execution[Literal["ddp", "fsdp"]] = "ddp"  # of a generator's state over several workers; a tokenizer's is always whole
    max_failures: Execution[int] = 3
    prefetch: Execution[int] = 2  # batches of items that are decoded ahead of the step; 0: none
    decoders: Execution[int] = 2  # threads of each worker that decode and vary items
    cache_gb: Execution[float] = 64.0  # of shards in a node's cache; those that were not used for longest go first
    decoded_gb: Execution[float] = 4.0  # a split that is no larger than this is kept decoded in the cache

    def __post_init__(self) -> None:
        _check_ranges(self, "execution")
        if self.workers < 1 or self.threads < 1:
            raise ConfigError(f"workers={self.workers}, threads={self.threads}: must be at least 1")
        if self.prefetch < 0 or self.decoders < 1:
            raise ConfigError(f"prefetch={self.prefetch}, decoders={self.decoders}: prefetch >= 0, and at least 1 decoder")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb={self.cache_gb}: must be positive")

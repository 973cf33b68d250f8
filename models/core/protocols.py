"""The nouns and verbs that every method shares.

Shapes: B batch, L tokens, Q codebooks, C channels, H W image rows and columns, T text length, D width.
A tokenizer encodes a signal (images, series) to ``Tokens`` and decodes them; a generator learns and samples ``Tokens``.
Anything that meets these verbs trains, samples, is evaluated and is registered by the same pipeline.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.edits import override
from tokenloom.models.core.layout import LayoutError as LayoutError
from tokenloom.models.core.layout import TokenLayout as TokenLayout
from tokenloom.models.core.requests import Condition as Condition
from tokenloom.models.core.requests import Conditions as Conditions
from tokenloom.models.core.requests import Labels as Labels
from tokenloom.models.core.requests import Text as Text
from tokenloom.models.core.requests import TextFeatures as TextFeatures
from tokenloom.models.core.requests import Values as Values

if TYPE_CHECKING:
    from tokenloom.models.sampling.sampler import Sampler


#: What is known of a log-likelihood: itself, a bound on it, or nothing that can be computed.
Likelihood = Literal["exact", "bound", "none"]


def weakest(*parts: Likelihood) -> Likelihood:
    """The likelihood of a whole, whose parts have these."""
    return "none" if "none" in parts else "bound" if "bound" in parts else "exact"


@dataclass(frozen=True)
class Tokens:
    """Token data with its layout: ids (B, L) or (B, L, Q) of an integer type, or latents (B, L, C)."""

    data: Tensor
    layout: TokenLayout
    lengths: Tensor | None = None  # (B,) valid tokens of ragged rows; None when all are full

    def __post_init__(self) -> None:
        if self.lengths is None and self.data.shape[1] != self.layout.length:
            raise LayoutError(f"{self.data.shape[1]} tokens a row, layout has {self.layout.length} positions")
        if self.lengths is not None:
            self._check_lengths(self.lengths)
        if self.data.is_floating_point() == self.layout.discrete:
            raise LayoutError(f"data of type {self.data.dtype} in a layout with vocabulary {self.layout.vocabulary}")

    def _check_lengths(self, lengths: Tensor) -> None:
        rows, most = self.data.shape[:2]
        if lengths.shape != (rows,) or lengths.is_floating_point():
            raise LayoutError(f"lengths of shape {tuple(lengths.shape)}, {lengths.dtype}: must be one integer for each of {rows} rows")
        if most > self.layout.length:
            raise LayoutError(f"{most} tokens a row, layout has {self.layout.length} positions")
        # On a device the values are not looked at: that would wait for it.
        if lengths.device.type == "cpu" and rows and not (int(lengths.min()) >= 0 and int(lengths.max()) <= most):
            raise LayoutError(f"lengths from {int(lengths.min())} to {int(lengths.max())}: must be from 0 to {most} tokens a row")

    @property
    def ids(self) -> Tensor:
        """The ids as int64 (B, L) or (B, L, Q)."""
        return self.data.long()

    @property
    def valid_BL(self) -> Tensor | None:
        """(B, L) bool: which positions of ragged rows hold tokens; None when all are full."""
        if self.lengths is None:
            return None
        return torch.arange(self.data.shape[1], device=self.data.device) < self.lengths[:, None]

    def to(self, device: torch.device | str) -> Tokens:
        """The tokens on a device."""
        return replace(self, data=self.data.to(device), lengths=None if self.lengths is None else self.lengths.to(device))


def full_tokens_of(tokens: Tokens) -> Tensor:
    """The same of rows without padding.

    Raises:
        LayoutError: ragged rows, for a method that cannot tell padding from tokens.
    """
    if tokens.lengths is not None and int(tokens.lengths.min()) < tokens.layout.length:
        raise LayoutError("ragged rows: this method is trained on rows of one length; use a causal one trained by its likelihood (nll)")
    return tokens_of(tokens)


def tokens_of(tokens: Tokens) -> Tensor:
    """Ids as int64, or latents; of ragged rows with their padding."""
    return tokens.ids if tokens.layout.discrete else tokens.data


@dataclass(frozen=True)
class Batch:
    """What a loader yields: the rows of one rank's share of a global batch (or of a micro-batch).

    ``signal`` is float32 (B, channels, *shape) as the data's ``SignalSpec`` says (an image (B, C, H, W) in [-1, 1]); tokenizers take the
    signal, generators ``tokens`` and ``conditions``.  One condition alone goes by the name of its type.
    """

    signal: Tensor | None = None
    tokens: Tokens | None = None
    conditions: Conditions = field(default_factory=Conditions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", Conditions.of(self.conditions))

    @property
    def rows(self) -> int:
        """Number of rows B."""
        data = self.signal if self.signal is not None else self.tokens.data if self.tokens else None
        return 0 if data is None else len(data)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(
            None if self.signal is None else self.signal.to(device),
            None if self.tokens is None else self.tokens.to(device),
            self.conditions.to(device),
        )


@dataclass
class Quantized:
    """Result of a quantizer: straight-through z (B, C, H, W), ids (B, L) or (B, L, Q), named losses, named stats.

    ``losses`` are scalars already weighted; ``stats`` are detached tensors, e.g. ``usage`` (scales, codes) counts.  ``views`` are
    straight-through latents of the same images on other grids, which are decoded too and compared with the images at that size.
    """

    z: Tensor
    ids: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    views: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """What the train loop needs of any model."""

    #: Phases of one training step, in order; each has its own optimizer over ``phase_parameters``.
    phases: tuple[str, ...] = ("main",)

    @abstractmethod
    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """Scalar means over the batch's rows: ``loss`` (differentiated) and parts to log.

        All randomness comes from ``draws``; ``draws.step`` and ``draws.progress`` drive schedules.
        """

    def phase_parameters(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """Named trainable parameters that this phase optimizes (default: all that require gradients)."""
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]

    def frozen_parameters(self, progress: float) -> tuple[str, ...]:
        """Prefixes of the names of parameters that are frozen at this fraction of the run: neither momentum nor decay moves them.

        A method that is trained in stages overrides it (default: none is frozen).
        """
        return ()

    def begins(self, phase: str) -> int:
        """The step at which a phase begins (default: the first); until then its optimizer rests and counts no steps."""
        return 0

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is free of weight decay (default: vectors, scalars and embeddings of position)."""
        return parameter.ndim < 2 or "position" in name

    def averaged_buffers(self) -> dict[str, Tensor]:
        """Buffers that stand in for weights, by name: the EMA of the weights takes them in (those that a module names in ``averaged``)."""
        modules = self.named_modules()
        return {f"{prefix}.{n}": module.get_buffer(n) for prefix, module in modules for n in getattr(module, "averaged", ())}

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Called on every rank after the optimizers' step: EMA codebooks, revival; returns extra metrics."""
        return {}

    def adopt(self, **roles: nn.Module) -> None:
        """Copy, frozen, what this model needs of the trained models that it depends on (its config's ``needs``), by role.

        Called at every start of training.  ``tokenizer`` is that of a generator's tokens (VAR: codebook and Phi) or the base of
        a tokenizer (TiTok: its proxy codes); ``features`` is the classifier of the data; objectives have roles of their own, such
        as ``reference`` or ``teacher``.  A role that a model has no use for is ignored.
        """

    def finish(self, batches: Iterator[Batch]) -> None:
        """Called once after the last step with some training batches, the same on every rank: statistics that are set post training."""


class Tokenizer(Method):
    """A signal to tokens and back."""

    @property
    @abstractmethod
    def layout(self) -> TokenLayout:
        """Layout of the tokens of one item (its ``tokenizer`` field is filled by the pipeline)."""

    @abstractmethod
    def encode(self, signal: Tensor) -> Tokens:
        """Signals (B, channels, *shape), images in [-1, 1], to tokens; deterministic, in eval mode."""

    @abstractmethod
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to signals (B, channels, *shape), images clamped to [-1, 1]; raises ``LayoutError`` for foreign tokens."""

    def sized(self, shape: tuple[int, int]) -> Tokenizer:
        """The same weights for images of another shape (rows, columns).

        Raises:
            LayoutError: it is bound to the shape that it was trained on.
            ConfigError: the shape does not fit.
        """
        raise LayoutError(f"{type(self).__name__} is bound to the size of images that it was trained on")


class Generator(Method):
    """A distribution over the tokens of one layout."""

    layout: TokenLayout

    @abstractmethod
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition, each a function of its own condition and seed, whatever the batch."""

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse, before anything is trained or drawn, a sampler that this generator cannot follow.

        Raises:
            ConfigError: other steps or another decoder than its own are requested, and they are fixed.
        """
        if sampler.decoder is not None:
            raise ConfigError(f"sample.decoder={sampler.decoder.name}: this generator decodes in a way of its own; leave it out")
        if sampler.sizes is not None:
            raise ConfigError("sample.steps: this generator fixes its steps; leave it out")
        if sampler.visit is not None:
            raise ConfigError(f"sample.order={sampler.visit.label}: this generator fixes its order; leave it out")

    def on(self, grids: tuple[tuple[int, int], ...], quantizer: Any = None) -> Generator:
        """The same weights for tokens of other grids; ``quantizer`` is that of the tokenizer on them, of generators that copy one.

        Raises:
            LayoutError: this generator is bound to its grids.
        """
        raise LayoutError(f"{type(self).__name__} is bound to the grid of tokens that it was trained on, {self.layout.grids[-1]}")

    def log_prob(self, batch: Batch) -> Tensor:
        """Log-likelihood in nats (B,), or a bound on it from below, as ``likelihood`` says."""
        raise NotImplementedError(f"{type(self).__name__} has no tractable likelihood")

    @property
    def likelihood(self) -> Likelihood:
        """What ``log_prob`` is."""
        return "none" if type(self).log_prob is Generator.log_prob else "exact"


class Density(Method):
    """A distribution over signals themselves, without tokens: its likelihoods are in nats of the signal's discrete values."""

    #: What ``log_prob`` gives: the log-likelihood, or a bound below it.
    likelihood: ClassVar[Literal["exact", "bound"]]
    #: Shape of one signal, (channels, *shape).
    shape: tuple[int, ...]
    config: Any
    #: The settings of ``Sampler.edited`` that it has, each with the edits of its config that a value means.
    options: ClassVar[Mapping[str, Callable[[Any], dict[str, Any]]]] = {}

    def sampled(self, **changes: Any) -> Self:
        """The same weights under other settings of sampling; None leaves one as it is.

        Raises:
            ConfigError: a setting that this density does not have, or a value out of range, naming it.
        """
        given, other = {name: value for name, value in changes.items() if value is not None}, copy.copy(self)
        for name, value in given.items():
            if name not in self.options or (name.startswith("guidance") and not self.conditional):
                has = ", ".join(n for n in self.options if self.conditional or not n.startswith("guidance"))
                raise ConfigError(f"sample.{name}: {type(self).__name__} has no such setting; it has {has or 'none'}")
            other.config = override(other.config, self.options[name](value), f"sample.{name}")
        return other

    @property
    def conditional(self) -> bool:
        """Whether it has classes, between which guidance can tell."""
        return False

    @abstractmethod
    def log_prob(self, batch: Batch, draws: Draws) -> Tensor:
        """Log-likelihood in nats (B,), or a lower bound in expectation over ``draws``."""

    @abstractmethod
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One signal (B, *shape) for each of the draws' samples, in the data's range; ``condition`` is ignored where there is none."""

    def bits_per_dimension(self, log_prob_B: Tensor) -> Tensor:
        """Log-likelihoods in nats as bits for each value of the signal (fewer are better)."""
        return -log_prob_B / (math.log(2) * math.prod(self.shape))

    def signal_of(self, batch: Batch) -> Tensor:
        """The batch's signal (B, *shape).

        Raises:
            ConfigError: it has none, or one of another shape.
        """
        signal = batch.signal
        if signal is None or signal.shape[1:] != self.shape:
            found = "none" if signal is None else str(tuple(signal.shape[1:]))
            raise ConfigError(f"signal: {type(self).__name__} was built for signals of shape {self.shape}, the batch has {found}")
        return signal

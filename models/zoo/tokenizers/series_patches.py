"""Patches of a series: neighbouring values are one continuous token (TimesFM, Das et al. 2024, arXiv:2310.10688, section 4).

New: a forecaster reads patches of time as a language model reads words, as they are, without a vocabulary.
Differs: values come standardised by the training split and less the window's last known one, not by the mean and deviation of the
first patch; patches neither overlap nor are masked; all channels of a time step are in one patch.
Run: tokenloom run series_co2
Expect: no error but that of the half precision in which latents are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.registry import register
from tokenloom.models.core.signals import SignalSpec, text
from tokenloom.models.tokenizers.autoencoder import checked


class SignalPatches(Tokenizer):
    """Signals (B, C, T, *rest) to tokens (B, T / patch, patch * rest * C), in time, and back; nothing is trained or lost."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.signal_patches"):
        """``patch``: values along the first axis of a token."""

        patch: int

        def __post_init__(self) -> None:
            if self.patch < 1:
                raise ConfigError(f"patch={self.patch}: must be at least 1")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "-", "quantizer": "patches as they are"}

        def build(self, *, signal: SignalSpec, **given: Any) -> SignalPatches:
            """The tokenizer of signals of this shape.

            Raises:
                ConfigError: the signal is not a whole number of patches.
            """
            if signal.shape[0] % self.patch:
                raise ConfigError(f"patch={self.patch}: a signal of shape {text(signal.shape)} is not a whole number of patches")
            return SignalPatches(self, signal)

    def __init__(self, config: Config, signal: SignalSpec) -> None:
        super().__init__()
        self.config, self.signal = config, signal
        count = signal.shape[0] // config.patch
        self._layout = TokenLayout(grids=((1, count),), channels=math.prod(signal.shape) * signal.channels // count, axis="time")

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    def encode(self, signal: Tensor) -> Tokens:
        return Tokens(signal.movedim(1, 2).unflatten(1, (-1, self.config.patch)).flatten(2), self.layout)

    def decode(self, tokens: Tokens) -> Tensor:
        inner = (self.config.patch, self.signal.channels, *self.signal.shape[1:])
        signal = checked(tokens, self.layout).unflatten(2, inner).flatten(1, 2).movedim(2, 1)
        return signal if self.signal.range is None else signal.clamp(*self.signal.range)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.signal is not None, "a tokenizer is measured on signals"
        error = (self.decode(self.encode(batch.signal)) - batch.signal).square().mean()
        return {"loss": error, "reconstruction": error, "mse": error}


@register("series_patches", kind="tokenizer", paper="2310.10688", tiny={"patch": 4})
def series_patches(patch: int = 8) -> SignalPatches.Config:
    """A history and a horizon are whole numbers of patches."""
    return SignalPatches.Config(patch=patch)

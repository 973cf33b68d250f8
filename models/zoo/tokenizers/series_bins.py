"""Values in bins: each number of a signal is one token (Chronos, Ansari et al. 2024, arXiv:2403.07815, section 3.1).

New: a forecaster is a language model over quantised values; nothing about time or frequency is built in.
Differs: values come standardised by the training split and less the window's last known one, not divided by its mean; 128 bins
up to 4 by default, fewer and narrower than the paper's; channels of a time step follow each other.
Run: tokenloom run series_co2_bins
Expect: an error of at most half a bin, ``limit / bins``, for values inside of the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.registry import register
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.tokenizers.autoencoder import checked


class Bins(Tokenizer):
    """Signals (B, C, *shape) to ids (B, L) of their values, the channels of a place side by side, and back to the bins' centres."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.bins"):
        """``bins`` of one width between ``-limit`` and ``limit``; values beyond fall into the outermost ones."""

        bins: int
        limit: float

        def __post_init__(self) -> None:
            if self.bins < 2 or not 0 < self.limit < math.inf:
                raise ConfigError(f"bins={self.bins}, limit={self.limit}: at least 2 bins and a positive limit")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "-", "quantizer": "uniform bins"}

    def __init__(self, config: Config, signal: SignalSpec) -> None:
        super().__init__()
        self.config, self.signal = config, signal
        length = math.prod(signal.shape) * signal.channels
        self._layout = TokenLayout(grids=((1, length),), vocabulary=config.bins, axis="time")
        self.register_buffer("centre", torch.zeros(0), persistent=False)  # where the model is

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    centre: Tensor

    def encode(self, signal: Tensor) -> Tokens:
        value_BL = signal.flatten(2).transpose(1, 2).flatten(1)
        # bin k covers [-limit + k width, -limit + (k + 1) width), width = 2 limit / bins
        ids_BL = ((value_BL + self.config.limit) * self.config.bins / (2 * self.config.limit)).floor().clamp(0, self.config.bins - 1)
        return Tokens(ids_BL.long().to(self.layout.id_dtype), self.layout)

    def decode(self, tokens: Tokens) -> Tensor:
        ids_BL = checked(tokens, self.layout).to(self.centre.dtype)
        value_BL = (ids_BL + 0.5) * (2 * self.config.limit / self.config.bins) - self.config.limit
        signal = value_BL.unflatten(1, (-1, self.signal.channels)).transpose(1, 2).unflatten(2, self.signal.shape)
        return signal if self.signal.range is None else signal.clamp(*self.signal.range)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.signal is not None, "a tokenizer is measured on signals"
        error = (self.decode(self.encode(batch.signal)) - batch.signal).square().mean()
        return {"loss": error, "reconstruction": error, "mse": error}


@register("series_bins", kind="tokenizer", paper="2403.07815", tiny={"bins": 8, "limit": 1.0})
def series_bins(bins: int = 128, limit: float = 4.0) -> Bins.Config:
    """``limit`` in standard deviations of the training split."""
    return Bins.Config(bins=bins, limit=limit)

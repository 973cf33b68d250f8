"""Forecasts as samples: the continuation of a history, of any horizon.

Shapes: N histories, S sample paths of each, H values of a history, F values of a forecast, C channels, R = N S rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.tasks.serving.predict import Pair

ROWS = 512  # sample paths drawn at once
QUANTILES = (0.1, 0.5, 0.9)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Windows:
    """How series were cut and standardised: ``history`` and ``horizon`` of a window, mean and deviation of each channel."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: int
    horizon: int
    season: int
    naive: tuple[float, ...]  # mean absolute error of the seasonal naive forecast on the training split, one step ahead

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Windows:
        """From plain data."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return cls(**values)


@torch.no_grad()
def forecast(pair: Pair, windows: Windows, history_NHC: Values, horizon: int, samples: int, seed: int) -> Values:
    """Sample paths (N, S, F, C) in the data's units, each a function of its history, the seed and its number alone.

    Raises:
        ConfigError: a history that is too short, of other channels, or not finite.
    """
    if history_NHC.ndim != 3 or history_NHC.shape[1] < windows.history or history_NHC.shape[2] != len(windows.names):
        raise ConfigError(
            f"history of shape {history_NHC.shape}: needs at least {windows.history} values of {len(windows.names)} channels each"
        )
    if not np.isfinite(history_NHC).all() or horizon < 1 or samples < 1:
        raise ConfigError(f"history must be finite, horizon={horizon} and samples={samples} at least 1")
    scaled = (history_NHC[:, -windows.history :] - np.array(windows.mean)) / np.array(windows.std)
    rows = np.repeat(scaled, samples, axis=0)
    parts = [_paths(pair, windows, rows[start : start + ROWS], horizon, seed, start) for start in range(0, len(rows), ROWS)]
    paths = np.concatenate(parts).reshape(len(history_NHC), samples, horizon, -1)
    result: Values = paths * np.array(windows.std) + np.array(windows.mean)
    return result


def _paths(pair: Pair, windows: Windows, scaled_RHC: Values, horizon: int, seed: int, start: int) -> Values:
    """Paths (R, F, C), standardised; a horizon beyond the window's rolls on from each path's own values."""
    generator, tokenizer = pair.generator, pair.tokenizer
    if not isinstance(generator, GroupGenerator) or tokenizer is None:
        raise ConfigError(f"a forecast goes on from its history: {type(generator).__name__} cannot, use a generator of groups over tokens")
    known: Tensor = torch.from_numpy(scaled_RHC).float().transpose(1, 2)  # (R, C, H)
    channels, rows = known.shape[1], len(known)
    length = generator.layout.length
    keep_L = torch.arange(length) < windows.history * length // (windows.history + windows.horizon)  # whole tokens, see ``Series.check``
    conditions = Conditions.of(Labels(torch.zeros(rows, dtype=torch.int64))).to(pair.device)
    for block in range(-(-horizon // windows.horizon)):
        last = known[..., -1:]  # as in training, a window is less the last value that is known
        window = torch.cat([known[..., -windows.history :] - last, known.new_zeros(rows, channels, windows.horizon)], dim=2)
        draws = SampleDraws.of(seed, start, start + rows, pair.device).fork(f"forecast.{block}")
        tokens = tokenizer.encode(window.to(pair.device))
        drawn = generator.inpaint(tokens, keep_L, conditions, pair.sampler, draws)
        known = torch.cat([known, tokenizer.decode(drawn)[..., -windows.horizon :].cpu() + last], dim=2)
    return known[..., windows.history : windows.history + horizon].transpose(1, 2).double().numpy()


def seasonal_naive(history_NHC: Values, horizon: int, season: int) -> Values:
    """(N, F, C): the last season repeated."""
    last = history_NHC[:, -season:]
    return last[:, np.arange(horizon) % season]

"""Dropout whose masks come from the step's draws, so that any number of workers drops the same values."""

from __future__ import annotations

from torch import Tensor

from tokenloom.models.core.draws import Draws


def dropout(x: Tensor, rate: float, draws: Draws | None) -> Tensor:
    """Zero a share ``rate`` of the values of x (B, …) and scale the rest; identity without draws (evaluation)."""
    if draws is None or rate == 0:
        return x
    return x.masked_fill(draws.bernoulli(rate, *x.shape[1:]), 0).div_(1 - rate)


def branch(x: Tensor, rate: float, path_rate: float, draws: Draws | None) -> Tensor:
    """What a residual branch adds: some of its values, in some of the rows."""
    return drop_path(dropout(x, rate, draws), path_rate, draws)


def drop_path(x: Tensor, rate: float, draws: Draws | None) -> Tensor:
    """Zero whole rows of a residual branch (stochastic depth, arXiv:1603.09382); identity without draws."""
    if draws is None or rate == 0:
        return x
    return x.masked_fill(draws.bernoulli(rate, *([1] * (x.ndim - 1))), 0) / (1 - rate)

"""Points of two half circles, what tells them apart, and the distance of two samples: a target for heads of continuous tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.sampling.sampler import Moment

PLAIN = TokenLayout(grids=((1, 1),), channels=2)
WIDTH = 4
NOW = Moment(0, 1, 0, 1, 1)


def moons(draws: SampleDraws, which: int) -> Tensor:
    """(B, 2) points of one of two half circles with noise of 0.1, far from any normal distribution."""
    angle = torch.pi * draws.uniform("angle", 0)
    sign = 1 - 2 * which
    centre = torch.stack([angle.cos() + which, sign * angle.sin() + 0.5 * which], 1)
    return centre + 0.1 * draws.normal("noise", 0, 2)


def hidden_of(which: Tensor) -> Tensor:
    """(B, 1, D) hidden states that say which half circle."""
    return torch.nn.functional.one_hot(which, WIDTH)[:, None].float()


def energy(a: Tensor, b: Tensor) -> float:
    """The energy distance of two samples, zero for equal distributions and large counts (Székely and Rizzo 2013)."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())

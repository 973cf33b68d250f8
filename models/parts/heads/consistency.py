"""A consistency head: each continuous token in one or few steps from noise, learned without a teacher (arXiv:2303.01469, arXiv:2310.14189).

Shapes: B rows, N positions, R pairs of noise levels a target, C channels, D width.  A noisy token is x + sigma noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import NoiseHead
from tokenloom.models.parts.heads.denoising_mlp import DenoisingMLP
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment

SMALLEST = 0.002  # noise below this is none
RHO = 7.0  # bends the grid of noise levels towards the small ones (arXiv:2206.00364, equation 5)


@dataclass(frozen=True, kw_only=True)
class ConsistencySampler(HeadSampler, tag="head_sampler.consistency"):
    """``steps`` of the net: from noise to a token, then from the token under ever less noise again (arXiv:2303.01469, algorithm 1);
    ``temperature`` scales the noise of the start."""

    steps: int = 2
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000 or not 0 <= self.temperature < math.inf:
            raise ConfigError(f"sample.head.steps={self.steps}, temperature={self.temperature}: 1 to 1000 steps, not negative")


class Consistency(DenoisingMLP, NoiseHead):
    """``f(x, sigma, h)``: the token that a point of its noise's path leads to, the same along the path; guidance mixes such tokens."""

    settings = ConsistencySampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.consistency", label="consistency"):
        """``repeats`` pairs of neighbouring levels for each target, among ``levels`` up to ``largest`` noise, which grow from the first
        number to the second over training, doubling; latents are multiplied by ``scale``, which should give them unit variance."""

        width: int = 256
        depth: int = 3
        repeats: int = 4
        scale: float = 1.0
        levels: tuple[int, int] = (10, 160)
        largest: float = 80.0
        frequencies: int = 256

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.repeats, self.frequencies) < 1 or self.frequencies % 2 or self.scale <= 0:
                raise ConfigError(f"head: {self}: width, depth, repeats, frequencies (even) and scale must be positive")
            if len(self.levels) != 2 or not 2 <= self.levels[0] <= self.levels[1] or self.largest <= SMALLEST:
                raise ConfigError(f"head.levels={self.levels}, largest={self.largest}: two numbers from 2 on, not falling; some noise")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        self.config, channels = config, self.channels_of(layout)
        super().__init__(channels, channels, width, config.width, config.depth, frequencies=config.frequencies, norm="affine")

    def forward(self, x: Tensor, sigma: Tensor, h: Tensor) -> Tensor:
        """Tokens (…, C) of noisy ones at levels (…); at the smallest level the noisy one itself (arXiv:2303.01469, appendix C)."""
        s = sigma.unsqueeze(-1)
        keep = 1 / ((s - SMALLEST).square() + 1)
        change = (s - SMALLEST) * (s.square() + 1).rsqrt()
        return keep * x + change * super().forward(x * (s.square() + 1).rsqrt(), sigma.log() / 4 + 0.5, h)

    def grid(self, count: int, like: Tensor) -> Tensor:
        """(count,) levels, growing."""
        low, high = SMALLEST ** (1 / RHO), self.config.largest ** (1 / RHO)
        return (low + torch.linspace(0, 1, count, device=like.device) * (high - low)) ** RHO

    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) pseudo-Huber distances of what neighbouring levels of one path lead to, weighed by how near they are
        (arXiv:2310.14189, section 3; levels are drawn by a discretised log-normal)."""
        (count, channels), repeats = target_BNC.shape[1:], self.config.repeats
        first, last = self.config.levels
        doublings = math.floor(math.log2(last / first) + 1e-9)
        stage = min(doublings, math.floor(min(1.0, draws.progress) * (doublings + 1)))
        grid = self.grid(min(last, first * 2**stage) + 1, target_BNC)
        edges = torch.erf((grid.log() + 1.1) / (2.0 * math.sqrt(2)))
        share = (edges[1:] - edges[:-1]).cumsum(0) / (edges[-1] - edges[0])
        index = torch.searchsorted(share, draws.uniform(count, repeats).clamp(1e-6, 1 - 1e-6)).clamp_max(len(share) - 1)
        noise = draws.normal(count, repeats, channels)
        data, h = (self.config.scale * target_BNC.float()).unsqueeze(2), h_BND.unsqueeze(2).expand(-1, -1, repeats, -1)
        low, high = grid[index], grid[index + 1]
        with torch.no_grad():
            target = self(data + low.unsqueeze(-1) * noise, low, h)
        found = self(data + high.unsqueeze(-1) * noise, high, h)
        c = 0.00054 * math.sqrt(channels)
        distance = ((found - target).square().sum(-1) + c**2).sqrt() - c
        return (distance / (high - low)).mean(2)

    def sample(self, hidden: Hidden, own: ConsistencySampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """From the largest noise to a token, and again from levels that fall evenly on the grid."""
        shape = (hidden.cond_BND.shape[1], self.enter.in_features)
        noise = draws.normal("head", moment.step, *shape)
        levels = self.grid(own.steps + 1, noise).flip(0)[:-1].tolist()
        x = own.temperature * levels[0] * noise
        for i, level in enumerate(levels):
            if i:
                x = x + math.sqrt(level**2 - SMALLEST**2) * draws.normal(f"head.{i}", moment.step, *shape)
            sigma = torch.full(x.shape[:2], level, device=x.device)
            x = hidden.guided(lambda h, x=x, sigma=sigma: self(x, sigma, h))  # type: ignore[misc]
        return x / self.config.scale

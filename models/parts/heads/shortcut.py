"""A shortcut head: a flow whose steps may be long, since the net knows how long they are (arXiv:2410.12557; FAR, arXiv:2504.18391).

Shapes: B rows, N positions, R times a target, C channels, D width.  Level l is that of steps of 2^-l of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.flows.matching import between
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import NoiseHead
from tokenloom.models.parts.heads.denoising_mlp import DenoisingMLP
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.time import sinusoidal_embedding
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler


@dataclass(frozen=True, kw_only=True)
class ShortcutSampler(HeadSampler, tag="head_sampler.shortcut"):
    """``steps`` of equal length, a power of two; ``temperature`` scales the noise at the start."""

    steps: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps & (self.steps - 1) or not 0 <= self.temperature < math.inf:
            raise ConfigError(f"sample.head.steps={self.steps}, temperature={self.temperature}: a power of two, not negative")


class Shortcut(DenoisingMLP, NoiseHead):
    """The mean velocity over a step from x_t, given the step's length and the hidden state: of the shortest steps it is the flow's own,
    of others that of two steps of half the length, as the head itself takes them."""

    settings = ShortcutSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.shortcut", label="shortcut"):
        """``finest``: shortest steps of the time, a power of two.  ``repeats`` times are drawn for each target, ``consistent`` of which
        train longer steps; latents are multiplied by ``scale``, which should give them unit variance."""

        width: int = 1024
        depth: int = 6
        repeats: int = 4
        consistent: int = 1
        finest: int = 128
        scale: float = 1.0
        frequencies: int = 256

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.frequencies) < 1 or self.frequencies % 2 or self.scale <= 0:
                raise ConfigError(f"head: {self}: width, depth, frequencies (even) and scale must be positive")
            if not 0 < self.consistent < self.repeats:
                raise ConfigError(f"head.consistent={self.consistent}: must be at least 1 and leave some of head.repeats={self.repeats}")
            if self.finest < 2 or self.finest & (self.finest - 1):
                raise ConfigError(f"head.finest={self.finest}: must be a power of two, at least 2")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        self.config, self.levels, channels = config, config.finest.bit_length() - 1, self.channels_of(layout)
        super().__init__(channels, channels, width, config.width, config.depth, frequencies=config.frequencies, norm="affine")
        self.length = nn.Embedding(self.levels + 1, config.width)
        nn.init.normal_(self.length.weight, std=0.02)

    def step(self, x: Tensor, time: Tensor, level: Tensor, h: Tensor) -> Tensor:
        """Mean velocities (…, C) over a step of level (…) from noisy latents (…, C) at times (…)."""
        clock = self.time(sinusoidal_embedding(time, self.frequencies).to(h))
        return self.modulated(x.to(h), clock + self.length(level) + self.condition(h)).float()

    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) squared errors of the mean velocity, the mean over channels and times."""
        (count, channels), repeats, longer = target_BNC.shape[1:], self.config.repeats, self.config.consistent
        u, noise = draws.uniform(count, repeats), draws.normal(count, repeats, channels)
        level = torch.full(u.shape, self.levels, device=u.device)
        level[..., :longer] = (draws.uniform(count, longer) * self.levels).long()
        # A step begins at a multiple of its length.
        time = (u * 2.0**level).floor() * 2.0**-level
        data = (self.config.scale * target_BNC.float()).unsqueeze(2).expand_as(noise)
        x, h = between(noise, data, time), h_BND.unsqueeze(2).expand(-1, -1, repeats, -1)
        wanted = data - noise
        with torch.no_grad():
            first = [each[:, :, :longer] for each in (x, time, level, h)]
            wanted = torch.cat([self.two_steps(*first), wanted[:, :, longer:]], 2)
        return (self.step(x, time, level, h) - wanted).square().mean((2, 3))

    def two_steps(self, x: Tensor, time: Tensor, level: Tensor, h: Tensor) -> Tensor:
        """Mean velocity of two steps of half the length (arXiv:2410.12557, equation 4)."""
        half = 2.0 ** -(level + 1)
        v = self.step(x, time, level + 1, h)
        return (v + self.step(x + half.unsqueeze(-1) * v, time + half, level + 1, h)) / 2

    def sample(self, hidden: Hidden, own: ShortcutSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """Equal steps from noise; guidance mixes velocities."""
        x = own.temperature * draws.normal("head", moment.step, hidden.cond_BND.shape[1], self.enter.in_features)
        level = torch.full(x.shape[:2], own.steps.bit_length() - 1, device=x.device)
        for i in range(own.steps):
            t = torch.full(x.shape[:2], i / own.steps, device=x.device)
            x = x + hidden.guided(lambda h: self.step(x, t, level, h)) / own.steps  # noqa: B023 - used at once
        return x / self.config.scale

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        if isinstance(sampler.head, ShortcutSampler) and sampler.head.steps > self.config.finest:
            raise ConfigError(f"sample.head.steps={sampler.head.steps}: the head was trained for at most {self.config.finest}")

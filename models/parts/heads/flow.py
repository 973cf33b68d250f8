"""A flow-matching head: each continuous token is drawn along a learned flow that is given the position's hidden state
(NextStep-1, arXiv:2508.10711; FlowAR, arXiv:2412.15205).

Shapes: B rows, N positions, R times a target, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.flows.matching import FlowSampler, Times, between, times
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import NoiseHead
from tokenloom.models.parts.heads.denoising_mlp import DenoisingMLP
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment


class FlowMatching(DenoisingMLP, NoiseHead):
    """The velocity from noise to a token given its hidden state, by a ``DenoisingMLP``; guidance mixes velocities."""

    settings = FlowSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.flow_matching", label="flow matching"):
        """``repeats``: times drawn for each target, as ``times`` has it; latents are multiplied by ``scale``, which should give them
        unit variance.  The net is told times as sines and cosines of ``unit`` times them, ``frequencies`` of both together."""

        width: int = 256
        depth: int = 3
        repeats: int = 4
        scale: float = 1.0
        times: Times = "logit_normal"
        frequencies: int = 256
        unit: float = 1000.0
        norm: Literal["plain", "affine"] = "affine"

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.repeats, self.frequencies) < 1 or self.frequencies % 2 or min(self.scale, self.unit) <= 0:
                raise ConfigError(f"head: {self}: width, depth, repeats, frequencies (even), scale and unit must be positive")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        self.config, channels = config, self.channels_of(layout)
        super().__init__(channels, channels, width, config.width, config.depth, frequencies=config.frequencies, norm=config.norm)

    def forward(self, x: Tensor, time: Tensor, h: Tensor) -> Tensor:
        """Velocities (…, C) of noisy latents (…, C) at times (…) and hidden states (…, D)."""
        return super().forward(x, time * (self.config.unit / 1000), h)  # whose own unit is 1000

    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) squared errors of the velocity, the mean over channels and times."""
        (count, channels), repeats = target_BNC.shape[1:], self.config.repeats
        time_BNR = times(self.config.times, draws, count, repeats)
        noise = draws.normal(count, repeats, channels)
        data = (self.config.scale * target_BNC.float()).unsqueeze(2)
        velocity = self(between(noise, data, time_BNR), time_BNR, h_BND.unsqueeze(2).expand(-1, -1, repeats, -1))
        return (velocity - (data - noise)).square().mean((2, 3))

    def sample(self, hidden: Hidden, own: FlowSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """From noise along the guided velocity."""
        shape = (hidden.cond_BND.shape[1], self.enter.in_features)

        def velocity(x: Tensor, time: float) -> Tensor:
            t = torch.full(x.shape[:2], time, device=x.device)
            return hidden.guided(lambda h: self(x, t, h))

        start = draws.normal("head", moment.step, *shape)
        return own.walk(start, velocity, lambda i: draws.normal(f"head.{i}", moment.step, *shape)) / self.config.scale

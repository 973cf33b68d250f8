"""A diffusion head: each continuous token is drawn by a small denoiser that is given the position's hidden state (MAR, arXiv:2406.11838).

Shapes: B rows, N positions, R noise levels a target, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion, Schedule, Spacing, spaced
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import ContinuousHead
from tokenloom.models.parts.heads.denoising_mlp import DenoisingMLP
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(HeadSampler, tag="head_sampler.diffusion"):
    """``steps`` of the reverse chain among all times, spaced as ``spaced`` has it; ``temperature`` scales the noise of each step (MAR,
    section 3.4)."""

    steps: int = 50
    temperature: float = 1.0
    spacing: Added[Spacing] = "even"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= TIMES or self.temperature < 0:
            raise ConfigError(f"sample.head.steps={self.steps}, temperature={self.temperature}: 1 to {TIMES} steps, not negative")
        spaced(self.steps, self.spacing)


class Diffusion(DenoisingMLP, ContinuousHead):
    """Gaussian diffusion of a token given its hidden state, by a ``DenoisingMLP``."""

    settings = DiffusionSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.diffusion"):
        """``repeats``: noise levels drawn for each target; latents are multiplied by ``scale``, which should give them unit variance.

        ``schedule``, ``predicts``, ``variance``: see ``GaussianDiffusion``; ``frequencies`` (0: as many as the width), ``norm``: see
        ``DenoisingMLP``.
        """

        width: int = 256
        depth: int = 3
        repeats: int = 4
        scale: float = 1.0
        schedule: Added[Schedule] = "cosine"
        predicts: Added[Literal["eps", "v"]] = "v"
        variance: Added[Literal["fixed", "learned"]] = "fixed"
        frequencies: Added[int] = 0
        norm: Added[Literal["plain", "affine"]] = "plain"

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.repeats) < 1 or (self.frequencies or self.width) % 2 or self.scale <= 0:
                raise ConfigError(f"head: {self}: width, frequencies (both even), depth, repeats and scale must be positive")

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Diffusion:
            return Diffusion(self, ContinuousHead.channels_of(layout), width)

    def __init__(self, config: Config, channels: int, width: int) -> None:
        self.config, self.process = config, GaussianDiffusion(config.schedule, config.predicts, config.variance)
        shape = (channels, self.process.outputs(channels), width, config.width, config.depth)
        super().__init__(*shape, frequencies=config.frequencies or config.width, norm=config.norm)

    def traits(self, plan: Plan) -> Traits:
        return {"several positions from one hidden state": Trait("yes", "head")}  # each by noise of its own

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Outputs (…, C or 2 C) for noisy latents (…, C) at times (…) of the chain and hidden states (…, D)."""
        return super().forward(x, t.double() / TIMES, h)

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) the parts of the diffusion's loss, each the mean over channels and noise levels."""
        if draws is None:
            raise ValueError("a diffusion head's loss needs draws")
        if target.ndim == 4:  # several positions from each hidden state
            each = target.shape[2]
            return self.loss(h_BND.repeat_interleave(each, 1), target.flatten(1, 2), draws).unflatten(1, (-1, each))
        (count, channels), repeats = target.shape[1:], self.config.repeats
        t_BNR = (draws.uniform(count, repeats) * TIMES).long()
        noise = draws.normal(count, repeats, channels)
        x0 = (self.config.scale * target.float()).unsqueeze(2).expand_as(noise)
        x_t = self.process.noised(x0, noise, t_BNR)
        output = self(x_t, t_BNR, h_BND.unsqueeze(2).expand(-1, -1, repeats, -1))
        return torch.stack([part.mean(2) for part in self.process.losses(output, x0, noise, x_t, t_BNR).values()]).sum(0)

    def sample(self, hidden: Hidden, own: DiffusionSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """Ancestral sampling; guidance mixes what is predicted at each step, not variances (MAR, section 3.4)."""
        shape = (hidden.cond_BND.shape[1], self.enter.in_features)
        x, times = draws.normal("head", moment.step, *shape), spaced(own.steps, own.spacing)
        for i in reversed(range(own.steps)):
            t = torch.full(x.shape[:2], times[i], device=x.device)
            output = hidden.guided(lambda h: self(x, t, h), of=shape[1])  # noqa: B023 - used at once
            x, log_variance = self.process.back(output, x, times[i], times[i - 1] if i else -1)
            if i:
                x = x + own.temperature * (0.5 * log_variance).exp() * draws.normal(f"head.{i}", moment.step, *shape)
        return x / self.config.scale

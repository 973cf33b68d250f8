"""A diffusion head: each continuous token is drawn by a small denoiser that is given the position's hidden state (MAR, arXiv:2406.11838).

Shapes: B rows, N positions, R noise levels a target, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.diffusion import TIMES, DiffusionSampler, GaussianDiffusion, Schedule, spaced
from tokenloom.models.parts.heads.continuous import NoiseHead
from tokenloom.models.parts.heads.denoising_mlp import DenoisingMLP
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment


class Diffusion(DenoisingMLP, NoiseHead):
    """Gaussian diffusion of a token given its hidden state, by a ``DenoisingMLP``."""

    settings = DiffusionSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(NoiseHead.Config, tag="head.diffusion"):
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

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        channels = self.channels_of(layout)
        self.config, self.process = config, GaussianDiffusion(config.schedule, config.predicts, config.variance)
        shape = (channels, self.process.outputs(channels), width, config.width, config.depth)
        super().__init__(*shape, frequencies=config.frequencies or config.width, norm=config.norm)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """Outputs (…, C or 2 C) for noisy latents (…, C) at times (…) of the chain and hidden states (…, D)."""
        return super().forward(x, t.double() / TIMES, h)

    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) the diffusion's loss, the mean over channels and noise levels."""
        (count, channels), repeats = target_BNC.shape[1:], self.config.repeats
        t_BNR, noise = (draws.uniform(count, repeats) * TIMES).long(), draws.normal(count, repeats, channels)
        h, x0 = (x.unsqueeze(2).expand(-1, -1, repeats, -1) for x in (h_BND, self.config.scale * target_BNC.float()))
        return self.process.loss(lambda x, t: self(x, t, h), x0, noise, t_BNR).mean(2)

    def sample(self, hidden: Hidden, own: DiffusionSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """Ancestral sampling; guidance mixes what is predicted at each step, not variances (MAR, section 3.4)."""
        shape = (hidden.cond_BND.shape[1], self.enter.in_features)
        x = self.process.chain(
            lambda x, t: hidden.guided(lambda h: self(x, t, h), of=shape[1]),
            draws.normal("head", moment.step, *shape),
            spaced(own.steps, own.spacing),
            lambda i: own.temperature * draws.normal(f"head.{i}", moment.step, *shape),
        )
        return x / self.config.scale

"""The energy score: a head that draws in one pass and is trained by a proper scoring rule (EAR, arXiv:2505.07812).

Shapes: B rows, N positions, R pairs of samples a target, C channels, Z numbers of noise, D width of the net, E of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import NoiseHead
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.modulated import ModulatedMLP
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment


@dataclass(frozen=True, kw_only=True)
class EnergySampler(HeadSampler, tag="head_sampler.energy"):
    """``temperature`` scales the shifts by which the noise enters (section 3.4)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"sample.head.temperature={self.temperature}: must be finite and not negative")


class EnergyScore(NoiseHead):
    """Hidden state and noise to a token, by a residual MLP that the noise modulates; guidance is of the hidden states."""

    settings = EnergySampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.energy_score", label="energy score"):
        """``alpha`` in (0, 2): the exponent of distances; ``spread`` weighs that between two samples (1: the proper score);
        ``repeats``: pairs of samples drawn for each target; ``noise`` numbers enter, uniform in [-1/2, 1/2)."""

        width: int = 1024
        depth: int = 6
        repeats: int = 4
        noise: int = 64
        alpha: float = 1.0
        spread: float = 1.0

        def __post_init__(self) -> None:
            for name in ("width", "depth", "repeats", "noise"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"head.{name}={getattr(self, name)}: must be at least 1")
            if not 0 < self.alpha < 2 or not 0 <= self.spread < float("inf"):
                raise ConfigError(f"head.alpha={self.alpha}, spread={self.spread}: alpha must be in (0, 2), spread not negative")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        self.config, self.channels = config, self.channels_of(layout)
        self.noise = nn.Linear(config.noise, config.width)
        self.net = ModulatedMLP(width, self.channels, config.width, config.depth)
        # Samples that start out equal would have no distance to differentiate.
        for layer in (self.net.last, self.net.out):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, h: Tensor, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Tokens (…, C) of hidden states (…, D) and uniform numbers (…, Z) in [0, 1)."""
        return self.net.modulated(h, self.noise((uniform - 0.5).to(h.dtype)), temperature).float()

    def score(self, first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        """(…) the energy score of two samples (…, C), larger being better (equation 7)."""

        def distance(a: Tensor, b: Tensor) -> Tensor:
            return torch.linalg.vector_norm(a - b, dim=-1) ** self.config.alpha

        return self.config.spread * distance(first, second) - distance(first, target) - distance(second, target)

    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) the negative energy score, the mean over pairs."""
        repeats, count = self.config.repeats, target_BNC.shape[1]
        h = h_BND.unsqueeze(2).expand(-1, -1, repeats, -1)
        first, second = (self(h, draws.uniform(count, repeats, self.config.noise)) for _ in range(2))
        return -self.score(first, second, target_BNC.float().unsqueeze(2)).mean(2)

    def sample(self, hidden: Hidden, own: EnergySampler, moment: Moment, draws: SampleDraws) -> Tensor:
        h = hidden.guided()
        return self(h, draws.uniform("head", moment.step, h.shape[1], self.config.noise), own.temperature)

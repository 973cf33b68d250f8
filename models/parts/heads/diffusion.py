"""A diffusion head: each continuous token is drawn by a small denoiser that is given the position's hidden state (MAR, arXiv:2406.11838).

Shapes: B rows, N positions, R noise levels a target, C channels, D width of the net, E of the head, T times of the chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.time import sinusoidal_embedding
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler

TIMES = 1000


@dataclass(frozen=True, kw_only=True)
class DiffusionSampler(HeadSampler, tag="head_sampler.diffusion"):
    """``steps`` of the reverse chain, evenly spaced among all times; ``temperature`` scales the noise of each step (MAR, section 3.4)."""

    steps: int = 50
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= TIMES or self.temperature < 0:
            raise ConfigError(f"sample.head.steps={self.steps}, temperature={self.temperature}: 1 to {TIMES} steps, not negative")


class Diffusion(Head):
    """Residual MLP blocks with adaptive norms, modulated by time and hidden state; noise falls along a cosine (arXiv:2102.09672)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.diffusion"):
        """``repeats``: noise levels drawn for each target; latents are multiplied by ``scale``, which should give them unit variance."""

        width: int = 256
        depth: int = 3
        repeats: int = 4
        scale: float = 1.0

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.repeats) < 1 or self.width % 2 or self.scale <= 0:
                raise ConfigError(f"head: {self}: width (even), depth, repeats and scale must be positive")

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Diffusion:
            if layout.discrete:
                raise LayoutError("a diffusion head needs continuous tokens, such as those of the recipe kl")
            return Diffusion(self, layout.channels, width)

    signal_T: Tensor

    def __init__(self, config: Config, channels: int, width: int) -> None:
        super().__init__()
        self.config, inner = config, config.width
        self.enter, self.condition = nn.Linear(channels, inner), nn.Linear(width, inner)
        self.time = nn.Sequential(nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.modulation = nn.ModuleList([nn.Linear(inner, 3 * inner) for _ in range(config.depth)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, inner)) for _ in range(config.depth)])
        self.last, self.out = nn.Linear(inner, 2 * inner), nn.Linear(inner, channels)
        for layer in (*self.modulation, self.last, self.out):  # blocks start as identities, predictions as zero
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Shares of signal variance at t = 0 … T - 1: cos^2, no step taking more than 0.999 of it.
        f = [math.cos((t / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(TIMES + 1)]
        kept = torch.tensor([max(b / a, 0.001) for a, b in pairwise(f)], dtype=torch.float64)
        self.register_buffer("signal_T", kept.cumprod(0).float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """The v (…, C) of noisy latents (…, C) at times (…) and hidden states (…, D)."""
        time = sinusoidal_embedding(t.flatten().float() / TIMES, self.config.width).unflatten(0, t.shape).to(h)
        y, c = self.enter(x.to(h)), F.silu(self.time(time) + self.condition(h))
        for modulation, mlp in zip(self.modulation, self.mlp):
            shift, scale, gate = modulation(c).chunk(3, -1)
            y = y + gate * mlp(F.layer_norm(y, y.shape[-1:]) * (1 + scale) + shift)
        shift, scale = self.last(c).chunk(2, -1)
        return self.out(F.layer_norm(y, y.shape[-1:]) * (1 + scale) + shift).float()

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) squared errors of ``v = a noise - b x_0`` (arXiv:2202.00512), the mean over channels and noise levels."""
        if draws is None:
            raise ValueError("a diffusion head's loss needs draws")
        (count, channels), repeats = target.shape[1:], self.config.repeats
        t_BNR = (draws.uniform(count, repeats) * TIMES).long()
        noise = draws.normal(count, repeats, channels)
        a, b = (s.sqrt().unsqueeze(-1) for s in (self.signal_T[t_BNR], 1 - self.signal_T[t_BNR]))
        x0 = self.config.scale * target.float().unsqueeze(2)
        v_hat = self(a * x0 + b * noise, t_BNR, h_BND.unsqueeze(2).expand(-1, -1, repeats, -1))
        return (v_hat - (a * noise - b * x0)).square().mean((2, 3))

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        """Ancestral sampling; guidance mixes predictions at each step (MAR, section 3.4)."""
        if forced is not None:
            return Drawn(forced)
        own = sampler.head if isinstance(sampler.head, DiffusionSampler) else DiffusionSampler()
        shape = (hidden.cond_BND.shape[1], self.out.out_features)
        x = draws.normal("head", moment.step, *shape)
        times = [round((i + 1) * TIMES / own.steps) - 1 for i in range(own.steps)]
        for i in reversed(range(own.steps)):
            t = torch.full(x.shape[:2], times[i], device=x.device)
            now, then = self.signal_T[times[i]], self.signal_T[times[i - 1]] if i else torch.ones_like(self.signal_T[0])
            v_hat = hidden.guided(lambda h: self(x, t, h))  # noqa: B023 - used at once
            x0 = now.sqrt() * x - (1 - now).sqrt() * v_hat
            # q(x_s | x_t, x_0) (arXiv:2006.11239, eqs. 6 and 7), s being the next time towards the data
            kept = now / then
            x = (then.sqrt() * (1 - kept) * x0 + kept.sqrt() * (1 - then) * x) / (1 - now)
            if i:
                noise = draws.normal(f"head.{i}", moment.step, *shape)
                x = x + own.temperature * ((1 - then) / (1 - now) * (1 - kept)).sqrt() * noise
        return Drawn(x / self.config.scale)

    def check_sampler(self, sampler: Sampler) -> None:
        if not isinstance(sampler.head, DiffusionSampler | None):
            raise ConfigError(f"sample.head={sampler.head!r}: a diffusion head takes the settings `diffusion`")

"""The diffusion head as MAR has it: predicted noise and a learned range of variances (arXiv:2406.11838; arXiv:2102.09672).

Shapes: B rows, N positions, R noise levels a target, C channels, D width of the net, E of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.diffusion import Chain, bound, evenly, look_up, noisy, reverse, step, strided
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.modulated import ModulatedMLP
from tokenloom.models.parts.time import TimeEmbedding
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler

#: Half the length of the time's vector.
FREQUENCIES = 128
CHAIN = Chain.cosine()


@dataclass(frozen=True, kw_only=True)
class IDDPMSampler(HeadSampler, tag="head_sampler.iddpm"):
    """``steps`` of the reverse chain, ``even`` from the first to the last time or one whole ``stride`` apart from the first;
    ``temperature`` scales the noise of each step (MAR, section 3.4)."""

    steps: int = 100
    spacing: Literal["even", "stride"] = "even"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"sample.head.temperature={self.temperature}: must be finite and not negative")
        self.chain()

    def chain(self) -> Chain:
        """The chain over the kept times.

        Raises:
            ConfigError: there are no so many times.
        """
        return CHAIN.at_times((evenly if self.spacing == "even" else strided)(len(CHAIN), self.steps))


class IDDPM(Head):
    """Draws each token by a small denoiser that is told the time and the position's hidden state."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.iddpm", label="diffusion, learned range"):
        """``width`` and ``depth`` of the residual MLP; ``repeats``: noise levels drawn for each target."""

        width: int = 1024
        depth: int = 6
        repeats: int = 4

        def __post_init__(self) -> None:
            for name in ("width", "depth", "repeats"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"head.{name}={getattr(self, name)}: must be at least 1")

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> IDDPM:
            if layout.discrete:
                raise LayoutError("a diffusion head needs continuous tokens, such as those of the recipe kl")
            return self.construct(layout.channels, width)

    table: Tensor

    def __init__(self, config: Config, channels: int, width: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.time = TimeEmbedding(config.width, FREQUENCIES, unit=1.0)
        for layer in self.time.net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        self.condition = nn.Linear(width, config.width)
        self.net = ModulatedMLP(channels, 2 * channels, config.width, config.depth)
        self.register_buffer("table", CHAIN.table(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (…, C) and share of the variance's range (…, C) of noisy tokens (…, C) at times (…), given hidden states (…, D)."""
        eps, share = self.net(x.to(h.dtype), self.time(t) + self.condition(h)).float().chunk(2, -1)
        return eps, share

    def terms(self, x0: Tensor, t: Tensor, noise: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(…) squared error of the noise, and the bound's term, in which the noise is held fixed (arXiv:2102.09672, equation 16)."""
        at = look_up(self.table, t)
        x = noisy(x0, noise, at)
        eps, share = self(x, t, h)
        return (noise - eps).square().mean(-1), bound(x0, x, step(x, eps.detach(), share, at), at, t == 0)

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) squared error of the noise plus the bound's term in bits a channel, the mean over noise levels."""
        if draws is None:
            raise ValueError("a diffusion head's loss needs draws")
        (count, channels), repeats = target.shape[1:], self.config.repeats
        t_BNR = (draws.uniform(count, repeats) * len(CHAIN)).long()
        x0 = target.float().unsqueeze(2).expand(-1, -1, repeats, -1)
        error, term = self.terms(x0, t_BNR, draws.normal(count, repeats, channels), h_BND.unsqueeze(2).expand(-1, -1, repeats, -1))
        return (error + term).mean(2)

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        """Ancestral sampling; guidance mixes the noise predictions, the variance is the conditional one's (MAR, section 3.4)."""
        if forced is not None:
            return Drawn(forced)
        own = sampler.head if isinstance(sampler.head, IDDPMSampler) else IDDPMSampler()
        shape = (hidden.cond_BND.shape[1], self.channels)

        def guided(x: Tensor, time: int) -> tuple[Tensor, Tensor]:
            t = torch.full(x.shape[:2], time, device=x.device)
            shares: list[Tensor] = []

            def noise_of(h: Tensor) -> Tensor:
                eps, share = self(x, t, h)
                shares.append(share)
                return eps

            return hidden.guided(noise_of), shares[0]

        steps = reverse(
            own.chain(),
            draws.normal("head", moment.step, *shape),
            guided,
            lambda i: draws.normal(f"head.{i}", moment.step, *shape),
            own.temperature,
        )
        return Drawn(steps[-1])

    def check_sampler(self, sampler: Sampler) -> None:
        if not isinstance(sampler.head, IDDPMSampler | None):
            raise ConfigError(f"sample.head={sampler.head!r}: this diffusion head takes the settings `iddpm`")

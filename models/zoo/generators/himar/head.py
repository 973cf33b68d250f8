"""A head that denoises all positions of a grid together: a small diffusion transformer given the hidden states (Hi-MAR, arXiv:2505.20288).

Shapes: B rows, N positions of the grid, R noise levels a target, C channels, D width of the states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.time import TimeEmbedding, sinusoidal_grid
from tokenloom.models.parts.visibility import EVERYTHING


class GridDiffusion(nn.Module):
    """Noise predicted for a whole grid by transformer blocks that time and hidden state modulate at each position."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="head.grid_diffusion", label="diffusion transformer over the grid"):
        """``repeats``: noise levels drawn for each target."""

        width: int = 512
        depth: int = 6
        heads: int = 8
        ratio: float = 4.0
        repeats: int = 4

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.heads, self.repeats) < 1 or self.width % 4 or self.width % self.heads:
                raise ConfigError(f"dense.width={self.width}, heads={self.heads}: the width must be a multiple of 4 and of the heads")

    position: Tensor

    def __init__(self, config: Config, grid: tuple[int, int], channels: int, condition: int) -> None:
        super().__init__()
        self.config, self.process = config, GaussianDiffusion("cosine", "eps", "large")
        net = Transformer.Config(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            norm=AdaLN.Config(gamma=0.0),
            mlp=GELU.Config(ratio=config.ratio, form="tanh"),
            attention=Attention.Config(bias="qkv"),
        )
        self.net = cast(Transformer, net.build(TokenLayout(grids=(grid,), channels=channels)))
        self.enter, self.condition = nn.Linear(channels, config.width), nn.Linear(condition, config.width)
        self.time = TimeEmbedding(config.width, frequencies=128, unit=1.0)
        self.out = nn.Linear(config.width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("position", sinusoidal_grid(grid, config.width))

    def forward(self, x_BNC: Tensor, t_B: Tensor, h_BND: Tensor) -> Tensor:
        """Predicted noise (B, N, C), float32, of noisy grids at times (B,) given hidden states."""
        cond = self.time(t_B)[:, None] + self.condition(h_BND)
        x = self.enter(x_BNC.to(cond)) + self.position
        place = torch.full((1, x.shape[1]), -1, device=x.device)
        return self.out(self.net.norm.last(self.net.stack(x, place, EVERYTHING, cond), cond)).float()

    def loss(self, h_BND: Tensor, target_BNC: Tensor, masked_BN: Tensor, draws: Draws) -> Tensor:
        """(B,) squared errors at the masked positions, the mean over all positions, channels and noise levels."""
        repeats, shape = self.config.repeats, target_BNC.shape[1:]
        t_BR, noise = (draws.uniform(repeats) * TIMES).long(), draws.normal(repeats, *shape).flatten(0, 1)
        x0, h, masked = (x.repeat_interleave(repeats, 0) for x in (target_BNC.float(), h_BND, masked_BN))
        t = t_BR.flatten()
        error = self(self.process.noised(x0, noise, t[:, None].expand(-1, shape[0])), t, h) - noise
        return (error * masked.unsqueeze(-1)).square().mean((1, 2)).unflatten(0, (-1, repeats)).mean(1)

    def sample(
        self,
        hidden: Hidden,
        start_BNC: Tensor,
        times: Sequence[int],
        noise: Callable[[int], Tensor],
        given_BNC: Tensor,
        known_BN: Tensor,
    ) -> Tensor:
        """A grid (B, N, C) from noise; before each step the known positions hold what is given, noised by the noise of the start."""

        def held(x: Tensor, t: int) -> Tensor:
            at = torch.full(x.shape[:2], t, device=x.device)
            return torch.where(known_BN.unsqueeze(-1), self.process.noised(given_BNC, start_BNC, at), x)

        return self.process.chain(lambda x, t: hidden.guided(lambda h: self(x, t[:, 0], h)), start_BNC, times, noise, held)

"""A transformer over the patches of a noisy image and the tokens that describe it (DiT, arXiv:2212.09748, with tokens in sight).

Shapes: B rows, N tokens, Z channels of a token, P patches, S = P + N slots, D width, C H W image (or latents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Inner
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.time import TimeEmbedding


class Denoiser(nn.Module):
    """(noisy image, time, embedded tokens) to something of the image's shape."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.denoiser"):
        """Transformer over patches of ``patch`` by ``patch`` pixels and all tokens; the time modulates its norms."""

        width: int = 96
        depth: int = 4
        heads: int = 4
        patch: int = 4

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.heads, self.patch) < 1 or self.width % self.heads:
                raise ConfigError(
                    f"net.width={self.width}, depth={self.depth}, heads={self.heads}, patch={self.patch}: positive, heads divide the width"
                )

    def __init__(self, config: Config, shape: Shape, channels: int, dim: int, length: int) -> None:
        """For images of ``shape`` (rows, columns) and ``length`` tokens of ``dim`` channels.

        Raises:
            ConfigError: the patch does not divide the shape.
        """
        super().__init__()
        if shape[0] % config.patch or shape[1] % config.patch:
            raise ConfigError(f"net.patch={config.patch}: does not divide the size {text(shape)}")
        self.patch, width = config.patch, config.width
        self.grid = shape[0] // config.patch, shape[1] // config.patch
        slots = self.grid[0] * self.grid[1] + length
        self.patches = nn.Linear(channels * config.patch**2, width)
        self.tokens = nn.Linear(dim, width)
        # As large as what they are added to: beside a noise of unit size a smaller position would long be overlooked.
        self.position = nn.Parameter(torch.randn(slots, width))
        nn.init.normal_(self.tokens.weight)
        self.time = TimeEmbedding(width)
        self.stack = Blocks.Config(width=width, depth=config.depth, heads=config.heads, cond=width).build()
        for block in self.stack.blocks:
            # Open gates instead of DiT's shut ones: the tokens matter from the first step, else the encoder would drift meanwhile.
            bias = cast(nn.Linear, block.modulation).bias
            nn.init.ones_(bias[2 * width : 3 * width])
            nn.init.ones_(bias[5 * width :])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * config.patch**2)
        nn.init.normal_(self.out.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.out.bias)

    def embed(self, z_BNZ: Tensor) -> Tensor:
        """What tokens (B, N, Z) are to the net, (B, N, D); a decoder may put something else in their places."""
        return self.tokens(z_BNZ)

    def inner(self, depth: int) -> Inner:
        """The patches' features after ``depth`` blocks, for an alignment (REPA, arXiv:2410.06940).

        Raises:
            ConfigError: there are fewer blocks.
        """
        if not 1 <= depth <= len(self.stack.blocks):
            raise ConfigError(f"depth={depth}: the decoder's net has {len(self.stack.blocks)} blocks")
        rows, columns = self.grid
        return Inner(
            self.stack.blocks[depth - 1],
            self.out.in_features,
            lambda x_BSD: x_BSD[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns)),
        )

    def forward(self, x_BCHW: Tensor, t_B: Tensor, z_BND: Tensor) -> Tensor:
        """The prediction (B, C, H, W) at times (B,), from embedded tokens."""
        x_BPD = self.patches(F.pixel_unshuffle(x_BCHW, self.patch).flatten(2).transpose(1, 2))
        x_BSD = torch.cat([x_BPD, z_BND], 1) + self.position
        time_BD = self.time(t_B)
        h_BPD = self.stack(x_BSD, cond_BD=time_BD)[:, : x_BPD.shape[1]]
        shift, scale = self.modulation(F.silu(time_BD))[:, None].chunk(2, dim=-1)
        y_BPE = self.out(self.norm(h_BPD) * (1 + scale) + shift)
        return F.pixel_shuffle(y_BPE.transpose(1, 2).unflatten(2, self.grid), self.patch)

"""Convolutions around transformers of 1-D tokens: a Q-Former reads the feature map, mask tokens read the latents (GigaTok,
arXiv:2504.08736, section 3.1).

Shapes: B rows, C channels, H W image, h w grid of the convolutions, L = h w, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.nets.base import Inner, Net, PixelDecoder
from tokenloom.models.parts.nets.queries import LatentReader, Queries


@dataclass(frozen=True, kw_only=True)
class Hybrid(Queries, tag="net.hybrid", label="convolutions, Q-Former"):
    """``convolutions`` turn the image into maps on the grid of ``patch`` pixels a place, and back.

    The encoder's queries start as averages of the map in levels (one of all, four of the quarters, …), see each other and read the map;
    the decoder is that of ``Queries``, with convolutions in place of its pixels.
    """

    convolutions: Net

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolutions.axis != "grid":
            raise ConfigError(f"net.convolutions: {self.convolutions.label} has no grid")
        if self.reading != "tokens" or self.registers != "all":
            raise ConfigError(f"net.reading={self.reading!r}, registers={self.registers!r}: a Q-Former has neither")

    def grid(self, shape: Shape) -> Shape:
        if (here := super().grid(shape)) and self.convolutions.grid(shape) != (grid := (shape[0] // self.patch, shape[1] // self.patch)):
            raise ConfigError(f"net.patch={self.patch}: the convolutions' grid is {self.convolutions.grid(shape)}, not {grid}")
        return here

    def encoder(self, shape: Shape, channels: int, latent: int) -> QFormer:  # type: ignore[override]
        return QFormer(self, shape, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> HybridPixels:
        return HybridPixels(self, shape, channels, latent)


class QFormer(nn.Module):
    """Images (B, C, H, W) to latents (B, latent, 1, N)."""

    def __init__(self, net: Hybrid, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        width, (h, w) = net.encoder_blocks.width, net.convolutions.grid(shape)
        self.tokens = net.tokens
        self.convolutions = net.convolutions.encoder(shape, channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(h * w, width))
        self.queries = nn.Parameter(0.02 * torch.randn(net.tokens, width))
        self.norm_map = nn.LayerNorm(width, net.encoder_blocks.eps)
        self.stack = replace(net.encoder_blocks, context=width).build()
        self.norm = nn.LayerNorm(width, net.encoder_blocks.eps)
        self.out = nn.Linear(width, latent)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        map_BDhw = self.convolutions(image_BCHW)
        context_BLD = self.norm_map(map_BDhw.flatten(2).transpose(1, 2) + self.position)
        x_BND = self.stack(pooled(map_BDhw, self.tokens) + self.queries, context_BTD=context_BLD)
        return self.out(self.norm(x_BND)).transpose(1, 2)[:, :, None]


class HybridPixels(PixelDecoder):
    """Latents (B, latent, 1, N) to pixels (B, C, H, W)."""

    def __init__(self, net: Hybrid, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        self.width, self.grid = net.decoder_blocks.width, net.convolutions.grid(shape)
        self.reader = LatentReader(net, shape, latent)
        self.convolutions = net.convolutions.decoder(shape, channels, self.width)

    def forward(self, z_BC1N: Tensor) -> Tensor:
        return self.convolutions(self.reader(z_BC1N).transpose(1, 2).unflatten(2, self.grid))

    @property
    def last(self) -> Tensor:
        return self.convolutions.last

    def inner(self, depth: int) -> Inner:
        blocks, (h, w) = self.reader.trunk.stack.blocks, self.grid
        if not 1 <= depth <= len(blocks):
            raise ConfigError(f"depth={depth}: the decoder has {len(blocks)} blocks")
        # slots: class token, patches, latents
        return Inner(blocks[depth - 1], self.width, lambda x_BSD: x_BSD[:, 1 : 1 + h * w].transpose(1, 2).unflatten(2, (h, w)))


def pooled(map_BDhw: Tensor, tokens: int) -> Tensor:
    """The map's averages over 1, 4, 16, … equal parts, coarse ones first, as many as there are tokens: (B, N, D).

    A level that the tokens do not fill has as many parts a side as it takes, and the first of them stand.
    """
    parts: list[Tensor] = []
    side, missing = 1, tokens
    while missing > 0:
        level_BLD = F.adaptive_avg_pool2d(map_BDhw, side).flatten(2).transpose(1, 2)
        parts.append(level_BLD[:, :missing])
        missing, side = missing - side * side, 2 * side
    return torch.cat(parts, 1)

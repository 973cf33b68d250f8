"""Vision transformers whose vectors leave the encoder and enter the decoder as they are, as two released tokenizers have them.

Shapes: B rows, C channels, H W image, h w patch grid, L = h w, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.nets.base import Net, PixelDecoder
from tokenloom.models.parts.nets.vit import Blocks, PatchPixels, patch_grid


@dataclass(frozen=True, kw_only=True)
class BareViT(Net, tag="net.bare_vit", label="ViT, bare ends"):
    """``latent`` is the width of the side that it belongs to: the quantizer's own maps are all that stands between.

    ``norms``: before the blocks too, and then no bias on the patches (BSQ-ViT, after CLIP), or after them alone.  ``positions`` are
    learned, or fixed sines of row and column.  ``ends``: two layers with a tanh between, as wide as the blocks' MLP, or one
    transposed convolution.
    """

    patch: int
    encoder_blocks: Blocks.Config
    decoder_blocks: Blocks.Config
    norms: Literal["both", "after"] = "both"
    positions: Literal["learned", "sines"] = "learned"
    ends: Literal["tanh", "transposed"] = "tanh"

    def grid(self, shape: Shape) -> Shape:
        return patch_grid(shape, self.patch)

    def encoder(self, shape: Shape, channels: int, latent: int) -> BareEncoder:
        return BareEncoder(self, shape, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> BareDecoder:
        return BareDecoder(self, shape, channels, latent)


class BareTrunk(nn.Module):
    """Vectors (B, L, D) of a grid through blocks, with positions and norms."""

    def __init__(self, net: BareViT, blocks: Blocks.Config, grid: Shape, latent: int) -> None:
        super().__init__()
        if latent != blocks.width:
            raise ConfigError(f"latent={latent}: vectors of {blocks.width} channels pass as they are (latent, decoder_latent)")
        places = rows_and_columns(grid, blocks.width) if net.positions == "sines" else 0.02 * torch.randn(grid[0] * grid[1], blocks.width)
        self.position = nn.Parameter(places, requires_grad=net.positions == "learned")
        self.norm_pre: nn.Module = nn.LayerNorm(blocks.width, blocks.eps) if net.norms == "both" else nn.Identity()
        self.stack = blocks.build()
        self.norm = nn.LayerNorm(blocks.width, blocks.eps)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.norm(self.stack(self.norm_pre(x_BLD + self.position)))


class BareEncoder(nn.Module):
    """Images (B, C, H, W) to features (B, D, h, w)."""

    def __init__(self, net: BareViT, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        self.grid = net.grid(shape)
        self.patches = nn.Conv2d(channels, latent, net.patch, stride=net.patch, bias=net.norms == "after")
        self.trunk = BareTrunk(net, net.encoder_blocks, self.grid, latent)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BLD = self.patches(image_BCHW).flatten(2).transpose(1, 2)
        return self.trunk(x_BLD).transpose(1, 2).unflatten(2, self.grid)


class BareDecoder(PixelDecoder):
    """Features (B, D, h, w) to images (B, C, H, W)."""

    def __init__(self, net: BareViT, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        blocks, self.grid = net.decoder_blocks, net.grid(shape)
        self.trunk = BareTrunk(net, blocks, self.grid, latent)
        hidden = round(blocks.ratio * blocks.width)
        self.hidden = nn.Linear(blocks.width, hidden) if net.ends == "tanh" else None
        self.pixels: nn.Module = (
            PatchPixels(hidden, net.patch, channels, self.grid)
            if net.ends == "tanh"
            else nn.ConvTranspose2d(blocks.width, channels, net.patch, stride=net.patch)
        )

    def forward(self, z_BDhw: Tensor) -> Tensor:
        x_BLD = self.trunk(z_BDhw.flatten(2).transpose(1, 2))
        if self.hidden is not None:
            return self.pixels(torch.tanh(self.hidden(x_BLD)))
        return self.pixels(x_BLD.transpose(1, 2).unflatten(2, self.grid))

    @property
    def last(self) -> Tensor:
        return self.pixels.last if isinstance(self.pixels, PatchPixels) else self.pixels.get_parameter("weight")


def rows_and_columns(grid: Shape, width: int) -> Tensor:
    """Sines and cosines of a position's column and row, half of the channels each: (rows x columns, width) (MAE, arXiv:2111.06377)."""
    at = torch.arange(grid[0] * grid[1])
    quarter = max(1, width // 4)
    frequency = torch.exp(-math.log(10000.0) * torch.arange(quarter) / quarter)
    parts = [place[:, None] * frequency for place in (at % grid[1], at // grid[1])]
    table = torch.cat([each for angle in parts for each in (angle.sin(), angle.cos())], 1)[:, :width]
    return nn.functional.pad(table, (0, width - table.shape[1]))

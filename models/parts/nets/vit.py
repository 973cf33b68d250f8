"""Vision transformers of tokenizers: patches, blocks, class token, and the ViT on the image grid (ViT-VQGAN, arXiv:2110.04627).

Shapes: B rows, C channels, H W image, p patch, h w patch grid, L = h w, N further tokens, S = all slots, T context slots, D width.
Masks are boolean, (B or 1, 1, S, S) or (B or 1, 1, S, T), true where a slot is seen; None shows all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.mlp import GELU, MLP
from tokenloom.models.parts.nets.base import Net, PixelDecoder
from tokenloom.models.parts.visibility import EVERYTHING, Visibility


class Blocks(nn.Module):
    """Pre-norm transformer blocks: self-attention, cross-attention if there is a context, MLP with exact GELU."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.vit_blocks"):
        """``ratio`` of the MLP's hidden width to ``width``; widths of the ``context`` that cross-attention reads and of the vector
        ``cond`` that modulates the norms (shift, scale and a gate that starts at zero: DiT, arXiv:2212.09748); 0 is none.

        ``attention`` and ``mlp`` are other branches than the usual ones; ``ratio`` is that of the usual MLP."""

        width: int
        depth: int
        heads: int
        ratio: float = 4.0
        eps: float = 1e-5
        context: int = 0
        cond: int = 0
        attention: Added[Attention.Config | None] = None
        mlp: Added[MLP.Config | None] = None

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
                raise ConfigError(
                    f"blocks.width={self.width}, depth={self.depth}, heads={self.heads}: positive, and the width a multiple of the heads"
                )
            if self.ratio <= 0 or self.eps <= 0 or min(self.context, self.cond) < 0:
                raise ConfigError(
                    f"blocks.ratio={self.ratio}, eps={self.eps}, context={self.context}, cond={self.cond}: positive (0: none)"
                )

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(
        self,
        x_BSD: Tensor,
        visibility: Visibility = EVERYTHING,
        context_BTD: Tensor | None = None,
        cond_BD: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, S, D) to (B, S, D); there is no norm after the last block."""
        for block in self.blocks:
            x_BSD = block(x_BSD, visibility, context_BTD, cond_BD, context_mask)
        return x_BSD


class Block(nn.Module):
    """One block; see ``Blocks``."""

    def __init__(self, config: Blocks.Config) -> None:
        super().__init__()
        width, eps = config.width, config.eps
        learned = config.cond == 0  # with a condition the norms' scales and shifts come from it
        self.norm1 = nn.LayerNorm(width, eps, elementwise_affine=learned)
        self.attention = (config.attention or Attention.Config(bias="qkv")).build(width, config.heads)
        self.cross: ContextAttention | None = None
        if config.context:
            self.norm_cross = nn.LayerNorm(width, eps)
            self.cross = ContextAttention(width, config.context, config.heads)
        self.norm2 = nn.LayerNorm(width, eps, elementwise_affine=learned)
        self.mlp = (config.mlp or GELU.Config(ratio=config.ratio, form="none")).build(width)
        self.modulation: nn.Linear | None = None
        if config.cond:
            self.modulation = nn.Linear(config.cond, 6 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x_BSD: Tensor, visibility: Visibility, context_BTD: Tensor | None, cond_BD: Tensor | None, context_mask: Tensor | None
    ) -> Tensor:
        if self.modulation is None:
            x_BSD = x_BSD + self.attention(self.norm1(x_BSD), visibility, None, None)
        else:
            assert cond_BD is not None, "these blocks need a condition"
            six = self.modulation(F.silu(cond_BD))[:, None].chunk(6, dim=-1)
            x_BSD = x_BSD + six[2] * self.attention(self.norm1(x_BSD) * (1 + six[1]) + six[0], visibility, None, None)
        if self.cross is not None:
            assert context_BTD is not None, "these blocks need a context"
            x_BSD = x_BSD + self.cross(self.norm_cross(x_BSD), context_BTD, context_mask)
        if self.modulation is None:
            return x_BSD + self.mlp(self.norm2(x_BSD))
        return x_BSD + six[5] * self.mlp(self.norm2(x_BSD) * (1 + six[4]) + six[3])


class ContextAttention(nn.Module):
    """Multi-head attention of slots (B, S, D) to a context (B, T, D')."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BSD: Tensor, context_BTD: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x_BSD), *self.kv(context_BTD).chunk(2, dim=-1)))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(h.transpose(1, 2).flatten(2))


class PatchEmbedding(nn.Conv2d):
    """Patches of an image (B, C, H, W) as vectors (B, L, D), row-major."""

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__(channels, width, patch, stride=patch)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return super().forward(image_BCHW).flatten(2).transpose(1, 2)


class PatchPixels(nn.Module):
    """Vectors (B, L, D) of a grid of patches to the image (B, C, H, W); a vector's entries are ordered (row, column, channel).

    ``smooth``: size of a last convolution over the pixels, which hides the seams; 0 is none.
    """

    def __init__(self, width: int, patch: int, channels: int, grid: tuple[int, int], smooth: int = 0) -> None:
        super().__init__()
        self.patch, self.channels, self.grid = patch, channels, grid
        self.linear = nn.Linear(width, patch * patch * channels)
        self.conv: nn.Module = nn.Identity()
        if smooth:  # starts as the identity: a random kernel of few channels may pass next to nothing
            self.conv = nn.Conv2d(channels, channels, smooth, padding=smooth // 2)
            nn.init.dirac_(self.conv.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.conv(unpatchify(self.linear(x_BLD), self.patch, self.grid))

    @property
    def last(self) -> Tensor:
        """The weight before the pixels."""
        return self.conv.weight if isinstance(self.conv, nn.Conv2d) else self.linear.weight


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """Pixels of each patch (B, L, p p C), ordered (row, column, channel)."""
    b, c, h, w = image_BCHW.shape
    tiles = image_BCHW.view(b, c, h // patch, patch, w // patch, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(x_BLD: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of ``patchify``: (B, L, p p C) to (B, C, h p, w p)."""
    (h, w), b = grid, len(x_BLD)
    tiles = x_BLD.view(b, h, w, patch, patch, -1)
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h * patch, w * patch)


def sines(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of the row and the column of a grid's positions: (rows x columns, width) with entries in [-1, 1]."""
    rows, columns = grid
    at = torch.arange(rows * columns)
    share_LA = torch.stack([(at // columns) / rows, (at % columns) / columns], 1)
    frequencies = width // 4
    angle_LAW = share_LA[..., None] * (math.pi / 2) * 32 ** torch.linspace(0, 1, max(1, frequencies))
    table = torch.cat([angle_LAW.sin(), angle_LAW.cos()], -1).flatten(1)[:, :width]
    return F.pad(table, (0, width - table.shape[1]))


def patch_grid(shape: Shape, patch: int) -> Shape:
    """Rows and columns of the patches of an image.

    Raises:
        ConfigError: the patch does not divide the image.
    """
    if patch < 1 or min(shape) < patch or shape[0] % patch or shape[1] % patch:
        raise ConfigError(f"size={text(shape)}: not divisible by net.patch={patch}")
    return shape[0] // patch, shape[1] // patch


class Trunk(nn.Module):
    """A class token, patches and further tokens (queries or latents) through one stack of blocks, with a norm before and after.

    Every slot has a learned position; the order is [class, patches, further].  Positions start as sines of the place, the further
    tokens' spread evenly over the patches, and queries and keys of a block start alike, so that slots first look at their
    neighbourhood (after arXiv:2305.09828): a random start learns nothing of the image for hundreds of steps.
    """

    def __init__(self, config: Blocks.Config, grid: tuple[int, int], further: int = 0) -> None:
        super().__init__()
        width, scale = config.width, config.width**-0.5
        place, patches = 2 * scale * sines(grid, width), grid[0] * grid[1]
        near = (torch.arange(further) * 2 + 1) * patches // (2 * max(1, further))
        self.class_token = nn.Parameter(scale * torch.randn(1, width))
        self.position = nn.Parameter(torch.cat([scale * torch.randn(1, width), place]))
        self.further_position = nn.Parameter(place[near]) if further else None
        self.norm_pre = nn.LayerNorm(width, config.eps)
        self.stack = config.build()
        with torch.no_grad():
            for block in self.stack.blocks:
                qkv = cast(Attention, block.attention).qkv.weight
                qkv[:width].normal_(std=scale)
                qkv[width : 2 * width] = qkv[:width]
        self.norm_post = nn.LayerNorm(width, config.eps)

    def forward(self, patch_BLD: Tensor, further_BND: Tensor | None = None, visibility: Visibility = EVERYTHING) -> tuple[Tensor, Tensor]:
        """What becomes of the patches (B, L, D) and of the further tokens (B, N, D)."""
        x_BSD = torch.cat([self.class_token.expand(len(patch_BLD), 1, -1).to(patch_BLD.dtype), patch_BLD], 1) + self.position
        if further_BND is not None:
            assert self.further_position is not None, "this trunk has no places for further tokens"
            x_BSD = torch.cat([x_BSD, further_BND + self.further_position], 1)
        x_BSD = self.norm_post(self.stack(self.norm_pre(x_BSD), visibility)[:, 1:])
        patches = patch_BLD.shape[1]
        return x_BSD[:, :patches], x_BSD[:, patches:]


@dataclass(frozen=True, kw_only=True)
class ViT(Net, tag="net.vit", label="ViT"):
    """ViT-VQGAN's pair: patches with learned positions through blocks on both sides, each ending in two layers with a tanh between."""

    patch: int
    encoder_blocks: Blocks.Config
    decoder_blocks: Blocks.Config

    def grid(self, shape: Shape) -> Shape:
        return patch_grid(shape, self.patch)

    def encoder(self, shape: Shape, channels: int, latent: int) -> ViTEncoder:
        return ViTEncoder(self, shape, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> ViTDecoder:
        return ViTDecoder(self, shape, channels, latent)


def tanh_layers(width: int, ratio: float, out: int) -> nn.Sequential:
    """Two linear layers with a tanh between (arXiv:2110.04627, section 3.1)."""
    hidden = round(ratio * width)
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, out))


class ViTEncoder(nn.Module):
    """Images (B, C, H, W) to features (B, latent, h, w)."""

    def __init__(self, net: ViT, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        blocks, self.grid = net.encoder_blocks, net.grid(shape)
        self.patches = PatchEmbedding(channels, net.patch, blocks.width)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], blocks.width))
        self.stack = blocks.build()
        self.norm = nn.LayerNorm(blocks.width, blocks.eps)
        self.out = tanh_layers(blocks.width, blocks.ratio, latent)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BLD = self.norm(self.stack(self.patches(image_BCHW) + self.position))
        return self.out(x_BLD).transpose(1, 2).unflatten(2, self.grid)


class ViTDecoder(PixelDecoder):
    """Features (B, latent, h, w) to images (B, C, H, W)."""

    def __init__(self, net: ViT, shape: Shape, channels: int, latent: int) -> None:
        super().__init__()
        blocks, grid = net.decoder_blocks, net.grid(shape)
        self.embed = nn.Linear(latent, blocks.width)
        self.position = nn.Parameter(0.02 * torch.randn(grid[0] * grid[1], blocks.width))
        self.stack = blocks.build()
        self.norm = nn.LayerNorm(blocks.width, blocks.eps)
        hidden = round(blocks.ratio * blocks.width)
        self.hidden = nn.Linear(blocks.width, hidden)
        self.pixels = PatchPixels(hidden, net.patch, channels, grid)

    def forward(self, z_BChw: Tensor) -> Tensor:
        x_BLD = self.embed(z_BChw.flatten(2).transpose(1, 2)) + self.position
        return self.pixels(torch.tanh(self.hidden(self.norm(self.stack(x_BLD)))))

    @property
    def last(self) -> Tensor:
        return self.pixels.last

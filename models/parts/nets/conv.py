"""Convolutional encoder and decoder of VQGAN (arXiv:2012.09841), as VAR and LlamaGen use them.

Shapes: B rows, C channels, H W image, h w latent grid.  Level 0 has the highest resolution; each further level halves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.limits import Range
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Net, PixelDecoder, check_stem, from_pixels, last_weight, to_pixels


@dataclass(frozen=True, kw_only=True)
class Geometry(Net, tag="net.conv"):
    """What encoder and decoder have in common.

    ``channels`` times ``multipliers[i]`` is the width of level i; the first and the last convolution take and give ``patch`` by
    ``patch`` pixels (1 as published; 2 saves the costly full resolution); ``attention`` lists the levels whose blocks are followed by
    self-attention; ``middle`` is what stands at the lowest resolution between encoder and latents (and back).  The decoder's own
    ``decoder_multipliers`` and ``decoder_attention`` stand for it alone (empty or none: as the encoder's).  Where ``resample`` is by
    ``pool`` resolutions change by averages and repetition, without convolutions.  A ``stem`` of so many channels takes the place of the
    one convolution that cuts patches: convolutions of stride 2 from the full resolution, each twice as wide, and back, so that no grid
    of patches shows.
    """

    limits: ClassVar = {"channels": Range(1, 1 << 15)}

    channels: int
    multipliers: tuple[int, ...]
    patch: int = 1
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    attention: tuple[int, ...] = ()
    middle: Literal["attention", "blocks", "none"] = "attention"
    norm_groups: int = 32
    decoder_multipliers: Added[tuple[int, ...]] = ()
    decoder_attention: Added[tuple[int, ...] | None] = None
    resample: Added[Literal["conv", "pool"]] = "conv"
    stem: Added[int] = 0

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers + self.decoder_multipliers) < 1 or self.channels < 1:
            raise ConfigError(f"net.channels={self.channels}, multipliers={list(self.multipliers)}: must be positive")
        if len(self.decoding.multipliers) != len(self.multipliers):
            raise ConfigError(
                f"net.decoder_multipliers={list(self.decoder_multipliers)}: as many levels as the encoder, {len(self.multipliers)}"
            )
        if self.patch < 1:
            raise ConfigError(f"net.patch={self.patch}: must be at least 1")
        check_stem(self.stem, self.patch)
        if self.encoder_blocks < 1 or self.decoder_blocks < 1:
            raise ConfigError(
                f"net.encoder_blocks={self.encoder_blocks}, decoder_blocks={self.decoder_blocks}: a level needs at least 1 block"
            )
        for width in self.widths + self.decoding.widths:
            if self.norm_groups < 1 or width % self.norm_groups:
                raise ConfigError(f"net.norm_groups={self.norm_groups}: does not divide the width {width}")
        for name, levels in (("attention", self.attention), ("decoder_attention", self.decoding.attention)):
            if any(not 0 <= level < len(self.multipliers) for level in levels):
                raise ConfigError(f"net.{name}={list(levels)}: levels are 0 to {len(self.multipliers) - 1}")

    @property
    def decoding(self) -> Geometry:
        """The geometry as the decoder has it."""
        if not self.decoder_multipliers and self.decoder_attention is None:
            return self
        attention = self.attention if self.decoder_attention is None else self.decoder_attention
        multipliers = self.decoder_multipliers or self.multipliers
        return replace(self, multipliers=multipliers, attention=attention, decoder_multipliers=(), decoder_attention=None)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Image pixels a latent position, in each direction."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    def change(self, conv: Callable[[int], nn.Module], pool: nn.Module, width: int) -> nn.Module:
        """How a level of this width changes to the next."""
        return conv(width) if self.resample == "conv" else pool

    def grid(self, shape: Shape) -> Shape:
        down = self.downsampling
        if shape[0] % down or shape[1] % down or min(shape) < down:
            raise ConfigError(
                f"size={text(shape)}: not divisible by the downsampling {down} "
                f"of net.patch={self.patch} and multipliers={list(self.multipliers)}"
            )
        return shape[0] // down, shape[1] // down

    def encoder(self, shape: Shape, channels: int, latent: int) -> Encoder:
        return Encoder(self, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> Decoder:
        return Decoder(self.decoding, channels, latent)


class SingleGroupNorm(nn.GroupNorm):
    """Group normalisation that takes half precision as float32 and gives float32, as autocast has it on CUDA but not on a CPU."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        half = x_BCHW.dtype in (torch.float16, torch.bfloat16)
        return super().forward(x_BCHW.float() if half else x_BCHW)


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation with the eps of VQGAN."""
    return SingleGroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """norm, SiLU, conv, twice, beside the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        return self.shortcut(x_BCHW) + self.conv2(F.silu(self.norm2(h_BCHW)))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, beside the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x_BCHW)).flatten(2).transpose(1, 2)
        q, k, v = (t[:, None] for t in qkv.chunk(3, dim=-1))
        h_BLC = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x_BCHW + self.proj(h_BLC.transpose(1, 2).reshape(x_BCHW.shape))


class Downsample(nn.Conv2d):
    """3x3 convolution of stride 2 on an image padded at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Conv2d):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, then the change to the next."""

    def __init__(self, geometry: Geometry, level: int, channels_in: int, blocks: int, change: nn.Module) -> None:
        super().__init__()
        width = geometry.widths[level]
        self.blocks = nn.ModuleList(ResBlock(channels_in if b == 0 else width, width, geometry.norm_groups) for b in range(blocks))
        attentive = level in geometry.attention
        self.attention = nn.ModuleList(AttentionBlock(width, geometry.norm_groups) for _ in range(blocks if attentive else 0))
        self.change = change

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for b, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW)
            if self.attention:
                x_BCHW = self.attention[b](x_BCHW)
        return self.change(x_BCHW)


def middle(geometry: Geometry) -> nn.Sequential:
    """block, attention, block at the lowest resolution, as far as the geometry has them."""
    width, groups = geometry.widths[-1], geometry.norm_groups
    if geometry.middle == "none":
        return nn.Sequential()
    attention = AttentionBlock(width, groups) if geometry.middle == "attention" else nn.Identity()
    return nn.Sequential(ResBlock(width, width, groups), attention, ResBlock(width, width, groups))


class Encoder(nn.Module):
    """Images (B, channels, H, W) to features (B, latent, h, w)."""

    def __init__(self, geometry: Geometry, channels: int, latent: int) -> None:
        super().__init__()
        widths = geometry.widths
        self.conv_in = from_pixels(channels, geometry.channels, geometry.patch, geometry.stem)
        self.levels = nn.ModuleList()
        for i, width in enumerate(widths):
            change = geometry.change(Downsample, nn.AvgPool2d(2), width) if i + 1 < len(widths) else nn.Identity()
            self.levels.append(Level(geometry, i, widths[i - 1] if i else geometry.channels, geometry.encoder_blocks, change))
        self.middle = middle(geometry)
        self.norm_out = norm(widths[-1], geometry.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], latent, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.middle(x_BCHW))))


class Decoder(PixelDecoder):
    """Features (B, latent, h, w) to images (B, channels, H, W); ``levels`` run from the lowest resolution to the highest."""

    def __init__(self, geometry: Geometry, channels: int, latent: int) -> None:
        super().__init__()
        widths = geometry.widths
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.middle = middle(geometry)
        self.levels = nn.ModuleList()
        for i in reversed(range(len(widths))):
            change = geometry.change(Upsample, nn.UpsamplingNearest2d(scale_factor=2), widths[i]) if i else nn.Identity()
            self.levels.append(Level(geometry, i, widths[min(i + 1, len(widths) - 1)], geometry.decoder_blocks, change))
        self.norm_out = norm(widths[0], geometry.norm_groups)
        self.conv_out = to_pixels(widths[0], channels, geometry.patch, geometry.stem)

    def forward(self, z_BChw: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(z_BChw))
        for level in self.levels:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))

    @property
    def last(self) -> Tensor:
        return last_weight(self.conv_out)

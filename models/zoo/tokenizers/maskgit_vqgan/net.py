"""Convolutions of MaskGIT's VQGAN (arXiv:2202.04200): no attention, no biases inside, average pooling, images in [0, 1] inside.

Shapes: B rows, C channels, H W image, h w latent grid.  Level 0 has the highest resolution; each further level halves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.limits import Range
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Net, PixelDecoder, check_stem, from_pixels, last_weight, signed, to_pixels, unit
from tokenloom.models.parts.nets.conv import Upsample, norm


@dataclass(frozen=True, kw_only=True)
class MaskGITConv(Net, tag="net.maskgit_conv", label="MaskGIT conv"):
    """``channels`` times ``multipliers[i]`` is the width of level i; ``blocks`` a level and in the middle, on both sides.

    The first and the last convolution take and give ``patch`` by ``patch`` pixels (1 as published; 2 saves the full resolution),
    or a ``stem`` of so many channels leads there and back.
    """

    limits: ClassVar = {"channels": Range(1, 1 << 15)}

    channels: int
    multipliers: tuple[int, ...]
    blocks: int = 2
    patch: int = 1
    norm_groups: int = 32
    stem: Added[int] = 0

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1 or min(self.channels, self.blocks, self.patch) < 1:
            raise ConfigError(
                f"net.channels={self.channels}, multipliers={list(self.multipliers)}, blocks={self.blocks}, patch={self.patch}: "
                "must be positive"
            )
        check_stem(self.stem, self.patch)
        if self.norm_groups < 1 or any(width % self.norm_groups for width in self.widths):
            raise ConfigError(f"net.norm_groups={self.norm_groups}: does not divide the widths {list(self.widths)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    def grid(self, shape: Shape) -> Shape:
        down = self.patch * 2 ** (len(self.multipliers) - 1)
        if min(shape) < down or shape[0] % down or shape[1] % down:
            raise ConfigError(
                f"size={text(shape)}: not divisible by {down}, of net.patch={self.patch} and multipliers={list(self.multipliers)}"
            )
        return shape[0] // down, shape[1] // down

    def encoder(self, shape: Shape, channels: int, latent: int) -> MaskGITEncoder:
        return MaskGITEncoder(self, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> MaskGITDecoder:
        return MaskGITDecoder(self, channels, latent)


class OutputShortcutBlock(nn.Module):
    """norm, SiLU, conv, twice, beside the input; where the width changes the 1x1 convolution takes the block's own output instead."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = norm(channels_out, groups)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False) if channels_in != channels_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.shortcut is None else self.shortcut(h_BCHW))


def level(channels_in: int, width: int, net: MaskGITConv) -> nn.Sequential:
    """The blocks of one resolution."""
    return nn.Sequential(*(OutputShortcutBlock(channels_in if b == 0 else width, width, net.norm_groups) for b in range(net.blocks)))


class MaskGITEncoder(nn.Module):
    """Images (B, channels, H, W) in [-1, 1] to features (B, latent, h, w)."""

    def __init__(self, net: MaskGITConv, channels: int, latent: int) -> None:
        super().__init__()
        widths = net.widths
        self.conv_in = from_pixels(channels, net.channels, net.patch, net.stem, bias=False)
        self.levels = nn.ModuleList(level(widths[i - 1] if i else net.channels, width, net) for i, width in enumerate(widths))
        self.middle = level(widths[-1], widths[-1], net)
        self.norm_out = norm(widths[-1], net.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], latent, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(unit(image_BCHW))
        for i, blocks in enumerate(self.levels):
            x_BCHW = blocks(F.avg_pool2d(x_BCHW, 2) if i else x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.middle(x_BCHW))))


class MaskGITDecoder(PixelDecoder):
    """Features (B, latent, h, w) to images (B, channels, H, W); ``levels`` run from the lowest resolution to the highest."""

    def __init__(self, net: MaskGITConv, channels: int, latent: int) -> None:
        super().__init__()
        widths = net.widths
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.middle = level(widths[-1], widths[-1], net)
        falling = widths[::-1]
        self.levels = nn.ModuleList(level(falling[max(i - 1, 0)], width, net) for i, width in enumerate(falling))
        self.changes = nn.ModuleList(Upsample(width) for width in falling[:-1])
        self.norm_out = norm(widths[0], net.norm_groups)
        self.conv_out = to_pixels(widths[0], channels, net.patch, net.stem)

    def forward(self, z_BChw: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(z_BChw))
        for i, blocks in enumerate(self.levels):
            x_BCHW = blocks(self.changes[i - 1](x_BCHW) if i else x_BCHW)
        return signed(self.conv_out(F.silu(self.norm_out(x_BCHW))))

    @property
    def last(self) -> Tensor:
        return last_weight(self.conv_out)

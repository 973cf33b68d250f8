"""The convolutions of Open-MAGVIT2 (arXiv:2409.04410, after MAGVIT-v2, arXiv:2310.05737), which SimVQ and GigaTok took over.

Shapes: B rows, C channels, H W image, h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Net, PixelDecoder
from tokenloom.models.parts.nets.conv import norm


@dataclass(frozen=True, kw_only=True)
class Magvit(Net, tag="net.magvit", label="convolutions, adaptive norms"):
    """``channels`` times ``multipliers[i]`` is the width of level i, each of ``blocks`` residual blocks on either side.

    No convolution of a block has a bias; resolutions change by a strided convolution and by depth to space; each level of the decoder
    begins with a normalisation whose scale and shift come from the latents' mean and spread over the image (``levels: none``: without it).
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 4
    norm_groups: int = 32
    levels: Literal["adaptive", "none"] = "adaptive"

    def __post_init__(self) -> None:
        if not self.multipliers or min(*self.multipliers, self.channels, self.blocks) < 1:
            raise ConfigError(f"net.channels={self.channels}, multipliers={list(self.multipliers)}, blocks={self.blocks}: must be positive")
        if any(width % self.norm_groups for width in self.widths):
            raise ConfigError(f"net.norm_groups={self.norm_groups}: does not divide the widths {list(self.widths)}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    def grid(self, shape: Shape) -> Shape:
        down = 2 ** (len(self.multipliers) - 1)
        if shape[0] % down or shape[1] % down or min(shape) < down:
            raise ConfigError(f"size={text(shape)}: not divisible by the downsampling {down} of net.multipliers={list(self.multipliers)}")
        return shape[0] // down, shape[1] // down

    def encoder(self, shape: Shape, channels: int, latent: int) -> MagvitEncoder:
        return MagvitEncoder(self, channels, latent)

    def decoder(self, shape: Shape, channels: int, latent: int) -> MagvitDecoder:
        return MagvitDecoder(self, channels, latent)


class BareBlock(nn.Module):
    """norm, SiLU, convolution, twice, beside the input; no biases."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(channels_in, groups), norm(channels_out, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x_BCHW))))))
        return self.shortcut(x_BCHW) + h_BCHW


def blocks_of(net: Magvit, channels_in: int, channels_out: int) -> Iterator[BareBlock]:
    """The blocks of a level."""
    for index in range(net.blocks):
        yield BareBlock(channels_out if index else channels_in, channels_out, net.norm_groups)


class AdaptiveNorm(nn.Module):
    """Group normalisation, scaled by the latents' standard deviation over the image and shifted by their mean, both mapped linearly."""

    def __init__(self, latent: int, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(latent, channels), nn.Linear(latent, channels)

    def forward(self, x_BCHW: Tensor, z_BChw: Tensor) -> Tensor:
        spread_BC = (z_BChw.flatten(2).var(-1) + 1e-6).sqrt()
        scale, shift = self.gamma(spread_BC), self.beta(z_BChw.flatten(2).mean(-1))
        return scale[..., None, None] * self.norm(x_BCHW) + shift[..., None, None]


class MagvitEncoder(nn.Module):
    """Images (B, C, H, W) to latents (B, latent, h, w)."""

    def __init__(self, net: Magvit, channels: int, latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, net.channels, 3, padding=1, bias=False)]
        widths = (net.channels, *net.widths)
        for level, width in enumerate(net.widths):
            layers += blocks_of(net, widths[level], width)
            if level + 1 < len(net.widths):
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        layers += blocks_of(net, widths[-1], widths[-1])
        self.layers = nn.Sequential(*layers)
        self.norm_out = norm(widths[-1], net.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], latent, 1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.conv_out(F.silu(self.norm_out(self.layers(image_BCHW))))


class RisingLevel(nn.Module):
    """A level of the decoder: adaptive norm, blocks, and twice the resolution unless it is the last."""

    def __init__(self, net: Magvit, latent: int, channels_in: int, channels_out: int, last: int) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(latent, channels_in, net.norm_groups) if net.levels == "adaptive" else None
        self.blocks = nn.Sequential(*blocks_of(net, channels_in, channels_out))
        self.rise = None if last else nn.Conv2d(channels_out, 4 * channels_out, 3, padding=1)

    def forward(self, x_BCHW: Tensor, z_BChw: Tensor) -> Tensor:
        x_BCHW = self.blocks(x_BCHW if self.norm is None else self.norm(x_BCHW, z_BChw))
        return x_BCHW if self.rise is None else depth_to_space(self.rise(x_BCHW))


class MagvitDecoder(PixelDecoder):
    """Latents (B, latent, h, w) to images (B, C, H, W)."""

    def __init__(self, net: Magvit, channels: int, latent: int) -> None:
        super().__init__()
        widths = net.widths[::-1]
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.middle = nn.Sequential(*blocks_of(net, widths[0], widths[0]))
        before = (widths[0], *widths)
        self.levels = nn.ModuleList(RisingLevel(net, latent, before[i], width, int(i + 1 == len(widths))) for i, width in enumerate(widths))
        self.norm_out = norm(widths[-1], net.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        x_BCHW = self.middle(self.conv_in(z_BChw))
        for level in self.levels:
            x_BCHW = level(x_BCHW, z_BChw)
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))

    @property
    def last(self) -> Tensor:
        return self.conv_out.weight


def depth_to_space(x_BDhw: Tensor) -> Tensor:
    """(B, 4 C, h, w) to (B, C, 2 h, 2 w); the channels are ordered (row, column, channel), as TensorFlow has them."""
    b, d, h, w = x_BDhw.shape
    return x_BDhw.view(b, 2, 2, d // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, d // 4, 2 * h, 2 * w)

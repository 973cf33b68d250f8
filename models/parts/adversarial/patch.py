"""Discriminators that judge patches: pix2pix's (arXiv:1611.07004) and the blurring one of MAGVIT-2 and TiTok.

Shapes: B rows, C channels, H W image, h w patches.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.adversarial.base import Discriminator


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) to one logit a patch (B, 1, h, w); each layer halves the resolution.

    A small form for small images, normalised per group, so that it is the same for any number of workers.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.patch_discriminator"):
        """``channels`` of the first layer double up to eightfold over ``layers``."""

        channels: int = 64
        layers: int = 3
        norm_groups: int = 8

        def __post_init__(self) -> None:
            if self.layers < 1 or self.channels < 1:
                raise ConfigError(f"discriminator.layers={self.layers}, channels={self.channels}: must be positive")
            if self.norm_groups < 1 or self.channels % self.norm_groups:
                raise ConfigError(f"discriminator.norm_groups={self.norm_groups}: does not divide channels={self.channels}")

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        width = config.channels
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.layers):
            wider = config.channels * min(2**i, 8)
            layers += [
                nn.Conv2d(width, wider, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(config.norm_groups, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        layers.append(nn.Conv2d(width, 1, 3, padding=1))
        self.net = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.net(x_BCHW)


class PatchGAN(nn.Module):
    """The published patch discriminator: ``layers`` halvings, one layer and the logits at full stride, all with kernels of 4 pixels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.patchgan"):
        """Three layers of 64 channels are the published one: 2,765,633 parameters, a logit's receptive field is 70 pixels.

        ``batch`` norms have the statistics of the worker's rows, as published; ``group`` norms those of a row alone.
        """

        channels: int = 64
        layers: int = 3
        norm: Literal["batch", "group"] = "batch"

        def __post_init__(self) -> None:
            if self.layers < 1 or self.channels < 1 or (self.norm == "group" and self.channels % 4):
                raise ConfigError(f"discriminator.layers={self.layers}, channels={self.channels}: positive, channels in fours")

        @property
        def receptive_field(self) -> int:
            """Pixels (in each direction) that a logit depends on."""
            field = 1
            for stride in (1, 1, *(2,) * self.layers):
                field = (field - 1) * stride + 4
            return field

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (width, wider) in enumerate(itertools.pairwise(widths), 1):
            norm = nn.BatchNorm2d(wider, track_running_stats=False) if config.norm == "batch" else nn.GroupNorm(32, wider)
            stride = 2 if i < config.layers else 1
            layers += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False), norm, nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.net = nn.Sequential(*layers)
        for module in self.net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """One logit a patch, (B, 1, h, w)."""
        return self.net(x_BCHW)


def blurred(x_BCHW: Tensor, filter_K: tuple[int, ...], stride: int) -> Tensor:
    """A separable filter over each channel, its sum 1, with padding that keeps a resolution divided by the stride."""
    k = x_BCHW.new_tensor(filter_K)
    kernel = (k[:, None] * k) / k.sum() ** 2
    before, after = (len(k) - stride) // 2, len(k) - stride - (len(k) - stride) // 2
    x_BCHW = F.pad(x_BCHW, (before, after, before, after)) if stride > 1 else F.pad(x_BCHW, (len(k) // 2,) * 4)
    weight = kernel.expand(x_BCHW.shape[1], 1, len(k), len(k))
    return F.conv2d(x_BCHW, weight, stride=stride, groups=x_BCHW.shape[1])


class Blurring(nn.Module):
    """5x5 convolution, stages of a 3x3 convolution and a blur that halves the resolution, a 16x16 maximum, two layers to the logits."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.blurring_discriminator"):
        """Three stages from 128 channels are TiTok's: 1,909,889 parameters, a logit's receptive field is 112 pixels."""

        channels: int = 128
        stages: int = 3
        norm_groups: int = 32
        pooled: int = 16

        def __post_init__(self) -> None:
            if min(self.channels, self.stages, self.pooled) < 1 or self.norm_groups < 1 or self.channels % self.norm_groups:
                raise ConfigError(
                    f"discriminator.channels={self.channels}, stages={self.stages}, norm_groups={self.norm_groups}: "
                    "positive, and the groups divide the channels"
                )

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * 2**i for i in range(config.stages)]
        self.conv_in = nn.Conv2d(channels, widths[0], 5, padding=2)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip([widths[0], *widths], widths))
        self.norms = nn.ModuleList(nn.GroupNorm(config.norm_groups, width) for width in widths)
        self.hidden = nn.Conv2d(widths[-1], widths[-1], 1)
        self.out = nn.Conv2d(widths[-1], 1, 5, padding=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of at most 16x16 places."""
        x_BCHW = F.leaky_relu(self.conv_in(x_BCHW), 0.1)
        for conv, norm in zip(self.convs, self.norms):
            x_BCHW = F.leaky_relu(norm(blurred(conv(x_BCHW), (1, 3, 3, 1), 2)), 0.1)
        size = [min(self.config.pooled, side) for side in x_BCHW.shape[2:]]
        return self.out(F.leaky_relu(self.hidden(F.adaptive_max_pool2d(x_BCHW, size)), 0.1))


def parameters(discriminator: Discriminator, channels: int = 3) -> int:
    """Trainable parameters (without memory for them)."""
    with torch.device("meta"):
        return sum(p.numel() for p in discriminator.build(channels).parameters() if p.requires_grad)

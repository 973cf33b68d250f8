"""Patch discriminator (pix2pix, arXiv:1611.07004), normalised per group, so that it is the same for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError


class PatchDiscriminator(nn.Module):
    """Images (B, C, H, W) to one logit a patch (B, 1, h, w); each layer halves the resolution."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.patch_discriminator"):
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

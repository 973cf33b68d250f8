"""StyleGAN's discriminator (arXiv:1812.04948, arXiv:1912.04958): residual blocks that blur and halve down to 4x4, and a linear head.

Shapes: B rows, C channels, H W image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.adversarial.base import Discriminator
from tokenloom.models.parts.adversarial.patch import blurred

#: Channels at a resolution, before the multiplier of those above 32.
_WIDTHS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


class StyleGAN(nn.Module):
    """Square images of the side that it is made for to one logit an image (B, 1)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.stylegan_discriminator"):
        """``side`` of the images in pixels, a power of two; ``multiplier`` of the channels above 32 pixels, at most ``width`` channels.

        LlamaGen's at 256 pixels has multiplier 1 and 36,500,225 parameters.
        """

        side: int = 256
        multiplier: int = 1
        width: int = 512

        def __post_init__(self) -> None:
            if self.side not in _WIDTHS or self.side < 8:
                raise ConfigError(f"discriminator.side={self.side}: a power of two from 8 to {max(_WIDTHS)}")
            if self.multiplier < 1 or self.width < 1:
                raise ConfigError(f"discriminator.multiplier={self.multiplier}, width={self.width}: must be positive")

        def channels(self, side: int) -> int:
            """Channels at a resolution."""
            return min(self.width, _WIDTHS[side] * (self.multiplier if side > 32 else 1))

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config = config
        sides = [2**n for n in range(int(math.log2(config.side)), 1, -1)]
        widths = [config.channels(side) for side in sides]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(widths))
        self.conv_out = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.hidden, self.out = nn.Linear(16 * widths[-1], widths[-1]), nn.Linear(widths[-1], 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """One logit an image, (B, 1)."""
        if x_BCHW.shape[2:] != (self.config.side,) * 2:
            raise ConfigError(f"discriminator.side={self.config.side}: the images are {x_BCHW.shape[2]}x{x_BCHW.shape[3]}")
        x_BCHW = F.leaky_relu(self.conv_in(x_BCHW), 0.2)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        return self.out(F.leaky_relu(self.hidden(F.leaky_relu(self.conv_out(x_BCHW), 0.2).flatten(1)), 0.2))


class Block(nn.Module):
    """Two convolutions, a blur and a strided convolution beside a strided 1x1 convolution; their mean in energy."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.beside = nn.Conv2d(channels_in, channels_out, 1, stride=2)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.down = nn.Conv2d(channels_out, channels_out, 3, padding=1, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x_BCHW), 0.2)), 0.2)
        h_BCHW = self.down(blurred(h_BCHW, (1, 2, 1), 1))
        return (h_BCHW + self.beside(x_BCHW)) * math.sqrt(0.5)

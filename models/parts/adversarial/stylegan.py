"""StyleGAN's discriminator (arXiv:1812.04948, arXiv:1912.04958): residual blocks that blur and halve down to 4x4, and a linear head.

Shapes: B rows, C channels, H W image.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
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


class StyleGAN2(nn.Module):
    """Square images of one side to one logit an image (B, 1), as released by enhancing-transformers (arXiv:1912.04958, section 4.1).

    Weights are drawn with a variance of 1 and scaled where they are used (arXiv:1710.10196, section 4.1).  The last convolution also
    sees how much groups of up to four rows differ (section 3 there), so a row's logit depends on its neighbours in the batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.stylegan2_discriminator"):
        """``side`` of the images in pixels, a power of two; ``multiplier`` of the channels above 32 pixels: 28,864,129 numbers at 256."""

        side: int = 256
        multiplier: int = 2
        width: int = 512

        def __post_init__(self) -> None:
            StyleGAN.Config(side=self.side, multiplier=self.multiplier, width=self.width)

        def build(self, channels: int) -> StyleGAN2:
            return StyleGAN2(self, channels)

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.config = config
        of = StyleGAN.Config(side=config.side, multiplier=config.multiplier, width=config.width)
        widths = [of.channels(2**n) for n in range(int(math.log2(config.side)), 1, -1)]
        self.conv_in = ScaledConv(channels, widths[0], 1)
        self.blocks = nn.ModuleList(HalvingBlock(a, b) for a, b in itertools.pairwise(widths))
        self.conv_out = ScaledConv(widths[-1] + 1, widths[-1], 3)
        self.hidden, self.out = ScaledLinear(16 * widths[-1], widths[-1]), ScaledLinear(widths[-1], 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """One logit an image, (B, 1)."""
        if x_BCHW.shape[2:] != (self.config.side,) * 2:
            raise ConfigError(f"discriminator.side={self.config.side}: the images are {x_BCHW.shape[2]}x{x_BCHW.shape[3]}")
        x_BCHW = _active(self.conv_in(x_BCHW))
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        x_BCHW = _active(self.conv_out(torch.cat([x_BCHW, spread(x_BCHW)], 1)))
        return self.out(_active(self.hidden(x_BCHW.flatten(1))))


class HalvingBlock(nn.Module):
    """A convolution, then a blurred one of stride 2, beside a 1x1 convolution of what a blur has halved; their mean in energy."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = ScaledConv(channels_in, channels_in, 3)
        self.conv2 = ScaledConv(channels_in, channels_out, 3, stride=2)
        self.beside = ScaledConv(channels_in, channels_out, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = _active(self.conv2(blurred(_active(self.conv1(x_BCHW)), (1, 3, 3, 1), 1)))
        return (h_BCHW + self.beside(blurred(x_BCHW, (1, 3, 3, 1), 2))) * math.sqrt(0.5)


class ScaledConv(nn.Conv2d):
    """A convolution whose weights count 1 / sqrt(fan in); one of stride 2 takes what a blur has padded."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2 if stride == 1 else 0, bias=bias)
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._conv_forward(x_BCHW, self.weight * (self.weight[0].numel() ** -0.5), self.bias)


class ScaledLinear(nn.Linear):
    """The same of a linear map."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(width_in, width_out)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.in_features**-0.5, self.bias)


def _active(x: Tensor) -> Tensor:
    """A leaky ReLU that keeps the energy."""
    return math.sqrt(2) * F.leaky_relu(x, 0.2)


def spread(x_BCHW: Tensor, rows: int = 4) -> Tensor:
    """The mean over all values of their standard deviation over groups of up to ``rows`` rows, as one more channel (B, 1, H, W).

    Rows b, b + n, b + 2 n … are one of n groups; where groups of ``rows`` do not fill the batch, all of it is one.
    """
    count = len(x_BCHW)
    size = min(count, rows) if count % min(count, rows) == 0 else count
    groups = x_BCHW.view(size, count // size, *x_BCHW.shape[1:])
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return deviation.repeat(size)[:, None, None, None].expand(-1, 1, *x_BCHW.shape[2:])

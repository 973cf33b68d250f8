"""The two ends of a convolutional net: between pixels and the resolution of its first level.

One convolution that cuts patches is cheap, and the grid of the patches shows in what is decoded.  A stem goes there by convolutions of
stride 2, as the published nets do level by level, on few channels.  Shapes: B rows, C channels, H W image.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError


def check_stem(stem: int, patch: int) -> None:
    """Refuse a stem that does not lead to the patch; raises ``ConfigError``."""
    if stem and (patch < 2 or patch & (patch - 1)):
        raise ConfigError(
            f"net.stem={stem}: halves the image until the patch, so net.patch={patch} must be 2, 4, 8 …; stem: 0 cuts patches"
        )


def from_pixels(channels: int, width: int, patch: int, stem: int, bias: bool = True) -> nn.Module:
    """(B, channels, H, W) to (B, width, H / patch, W / patch): one convolution, or a stem of so many channels at the full resolution."""
    return Stem(channels, width, patch, stem, bias) if stem else nn.Conv2d(channels, width, patch + 2, stride=patch, padding=1, bias=bias)


def to_pixels(width: int, channels: int, patch: int, stem: int) -> Patches | Unstem:
    """The way back."""
    return Unstem(width, channels, patch, stem) if stem else Patches(width, channels, patch)


def last_weight(end: nn.Module) -> Tensor:
    """Weight of the last convolution of ``to_pixels``, by whose gradients losses are balanced."""
    last = end[-1] if isinstance(end, Unstem) else end
    assert isinstance(last, nn.Conv2d)
    return last.weight


class Patches(nn.Conv2d):
    """Each place gives ``patch`` by ``patch`` pixels."""

    def __init__(self, width: int, channels: int, patch: int) -> None:
        super().__init__(width, channels * patch**2, 3, padding=1)
        self.patch = patch

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x_BCHW), self.patch)


def _widths(width: int, patch: int, stem: int) -> list[int]:
    """Channels at each resolution, from the full one to that of the patch."""
    return [*(stem << i for i in range(patch.bit_length() - 1)), width]


class Stem(nn.Sequential):
    """Pixels to a patch's resolution by convolutions of stride 2, each to twice as many channels."""

    def __init__(self, channels: int, width: int, patch: int, stem: int, bias: bool) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, stem, 3, padding=1, bias=bias)]
        for narrow, wide in itertools.pairwise(_widths(width, patch, stem)):
            layers += [nn.SiLU(), nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=bias)]
        super().__init__(*layers)


class Unstem(nn.Sequential):
    """A patch's resolution to pixels: doubled by repetition, each time followed by a convolution to fewer channels."""

    def __init__(self, width: int, channels: int, patch: int, stem: int) -> None:
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(reversed(_widths(width, patch, stem))):
            layers += [nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(wide, narrow, 3, padding=1), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(stem, channels, 3, padding=1))

"""What every pair of encoder and decoder offers a tokenizer, and the ends that lead convolutional nets from pixels and back.

Shapes: B rows, C channels, H W image, h w latent grid ((1, N) for 1-D tokens).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape


class Inner(NamedTuple):
    """Where a decoder's inner features are: the output of ``module``, ``width`` channels, which ``lay`` puts on the image, (B, D, h, w)."""

    module: nn.Module
    width: int
    lay: Callable[[Tensor], Tensor]


class PixelDecoder(nn.Module, ABC):
    """Latents (B, latent, h, w) to unclamped images (B, C, H, W)."""

    @property
    @abstractmethod
    def last(self) -> Tensor:
        """The weight before the pixels, where the adaptive adversarial weight compares gradients."""

    def inner(self, depth: int) -> Inner:
        """The features after ``depth`` blocks.

        Raises:
            ConfigError: this decoder has no such features on the image plane.
        """
        raise ConfigError(f"net: {type(self).__name__} has no features on the image plane after {depth} blocks")


class Net(configs.Config, ABC):
    """The geometry of an encoder and its decoder; concrete ones are frozen dataclasses."""

    #: ``grid`` for tokens on the image plane, ``sequence`` for 1-D tokens.
    axis: ClassVar[str] = "grid"

    @abstractmethod
    def grid(self, shape: Shape) -> Shape:
        """Rows and columns of the latents of an image of this shape (rows, columns).

        Raises:
            ConfigError: the shape does not fit.
        """

    @abstractmethod
    def encoder(self, shape: Shape, channels: int, latent: int) -> nn.Module:
        """Images (B, channels, *shape) in [-1, 1] to latents (B, latent, h, w)."""

    @abstractmethod
    def decoder(self, shape: Shape, channels: int, latent: int) -> PixelDecoder:
        """Latents back to images."""


def unit(image_BCHW: Tensor) -> Tensor:
    """Pixels from [-1, 1] to [0, 1], for nets that were trained so."""
    return (image_BCHW + 1) / 2


def signed(image_BCHW: Tensor) -> Tensor:
    """Pixels from [0, 1] to [-1, 1]."""
    return 2 * image_BCHW - 1


# --- ends of convolutional nets -----------------------------------------------------------------------------------
# One convolution that cuts patches is cheap, and the grid of the patches shows in what is decoded.  A stem goes from the pixels to the
# resolution of the first level by convolutions of stride 2, as the published nets do level by level, on few channels.


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

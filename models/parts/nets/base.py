"""What every pair of encoder and decoder offers a tokenizer.

Shapes: B rows, C channels, H W image, h w latent grid ((1, N) for 1-D tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

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

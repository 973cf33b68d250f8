"""What a decoder that samples pixels offers a tokenizer.

Shapes: B rows, N tokens, Z channels of a token, C H W image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Tokenizer
from tokenloom.models.core.signals import Shape
from tokenloom.models.parts.adversarial.loss import Adversarial
from tokenloom.models.parts.nets.base import Inner


class GenerativeDecoder(nn.Module, ABC):
    """A distribution of images given their tokens; concrete ones nest a frozen ``Config``."""

    class Config(configs.Config, ABC):
        """What a decoder is made from."""

        def build(self, *, shape: Shape, channels: int, dim: int, length: int, **given: Any) -> GenerativeDecoder:
            """For images of ``shape`` (rows, columns) and ``length`` tokens of ``dim`` channels.

            Raises:
                ConfigError: they do not fit.
            """
            return self.construct(shape=shape, channels=channels, dim=dim, length=length)

        def source(self, shape: Shape, channels: int, **given: Any) -> tuple[Shape, int]:
            """Rows, columns and channels of what it samples, for images of ``shape``."""
            return shape, channels

    def __init__(self) -> None:
        super().__init__()
        #: Judges what it makes, of one that is trained against a discriminator.
        self.adversarial: Adversarial | None = None

    def clean(self, image_BCHW: Tensor) -> Tensor:
        """What it would sample in the best of cases: the image, or the latents of it."""
        return image_BCHW

    @abstractmethod
    def losses(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted terms whose sum is trained, and detached parts to log, among them ``reconstruction``: the error of predicted images."""

    @abstractmethod
    def sample(self, z_BNZ: Tensor, keep_B: Tensor) -> Tensor:
        """Unclamped images (B, C, H, W) of the first ``keep_B`` tokens a row, the same for a row in any batch."""

    def judged(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> Tensor:
        """The images (B, C, H, W) that its discriminator learns to tell from ``image_BCHW``, made as in its own training."""
        raise NotImplementedError(f"{type(self).__name__} has no discriminator")

    def fewest(self, length: int) -> int:
        """Tokens without which there is nothing to decode, of ``length``."""
        return length

    def inner(self, depth: int) -> Inner:
        """The features of the decoder's net on the image plane after ``depth`` blocks.

        Raises:
            ConfigError: this decoder has no such features.
        """
        raise ConfigError(f"decoder: {type(self).__name__} has no features on the image plane after {depth} blocks")

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Updates once an optimizer step on every rank, the only place for collectives; metrics to report."""
        return {}

    def adopt(self, tokenizer: Tokenizer | None) -> None:
        """Copy, frozen, what is needed of a trained tokenizer."""


def starting_noise(seed: int, *shape: int) -> Tensor:
    """The noise (1, *shape) from which every image is decoded: a function of the seed alone, float32, on the CPU."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, *shape, generator=draw, device="cpu")

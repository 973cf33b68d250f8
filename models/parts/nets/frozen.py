"""A frozen network's features on one side, a convolutional decoder that is trained on the other.

Shapes: B rows, C channels, H W image, h w grid of the features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.signals import Shape, text
from tokenloom.models.parts.nets.base import Net, PixelDecoder
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.models.parts.nets.conv import Geometry


class Source(configs.Config, ABC):
    """Where features come from."""

    @abstractmethod
    def grid(self, shape: Shape) -> Shape:
        """Rows and columns of the features of an image of this shape."""

    @abstractmethod
    def build(self, channels: int, latent: int) -> nn.Module:
        """Images (B, C, H, W) in [-1, 1] to features (B, latent, h, w)."""


@dataclass(frozen=True, kw_only=True)
class Classified(Source, tag="features.classifier", label="toy classifier of the data"):
    """The trunk of the data's own classifier, three small convolutions trained with its labels.

    ``shape``: as it describes itself, given when the tokenizer is built.
    """

    shape: Mapping[str, Any] | None = None

    def grid(self, shape: Shape) -> Shape:
        if self.shape is not None and max(shape) > (side := self.shape["protocol"]["side"]):
            shape = side, side
        return -(-shape[0] // 4), -(-shape[1] // 4)

    def build(self, channels: int, latent: int) -> Trunk:
        if self.shape is None:
            raise ConfigError("features: this tokenizer needs the data's classifier and was given none")
        return Trunk(Classifier.of(self.shape), latent)


class Trunk(nn.Module):
    """The classifier up to the features of each position."""

    def __init__(self, network: Classifier, latent: int) -> None:
        super().__init__()
        self.network = network
        width = cast(nn.Conv2d, network.trunk[-2]).out_channels
        if width != latent:
            raise ConfigError(f"dim={latent}: the classifier's features have {width} channels")
        del network.features, network.logits

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.network.grid(image_BCHW)

    def adopt(self, classifier: Classifier) -> None:
        """Copy the trained trunk."""
        self.network.trunk.load_state_dict(classifier.trunk.state_dict())


@dataclass(frozen=True, kw_only=True)
class Frozen(Net, tag="features.frozen", label="frozen features"):
    """Features of ``source``; ``geometry`` is that of the decoder and must start from the same grid."""

    source: Source
    geometry: Geometry

    @property
    def label(self) -> str:
        return f"{self.words} ({self.source.label}), {self.geometry.label}"

    def grid(self, shape: Shape) -> Shape:
        grid = self.source.grid(shape)
        if self.geometry.grid(shape) != grid:
            raise ConfigError(
                f"net.geometry: the decoder starts from {self.geometry.grid(shape)}, the features of {text(shape)} pixels are {grid}"
            )
        return grid

    def encoder(self, shape: Shape, channels: int, latent: int) -> nn.Module:
        return self.source.build(channels, latent).requires_grad_(False)

    def decoder(self, shape: Shape, channels: int, latent: int) -> PixelDecoder:
        return self.geometry.decoder(shape, channels, latent)

"""Decoders that sample the latents of a frozen, trained autoencoder, whose own decoder makes the pixels.

Shapes: B rows, N tokens, Z channels of a token, c channels of the base's latents on its grid of h x w, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Tokenizer
from tokenloom.models.core.signals import Shape, SignalSpec
from tokenloom.models.parts.decoders.base import GenerativeDecoder
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.nets.base import Inner
from tokenloom.models.tokenizers.autoencoder import Autoencoder


class OnLatents(GenerativeDecoder):
    """Holds the base; concrete ones learn and sample its latents, of about unit variance."""

    def __init__(self, base: Autoencoder) -> None:
        super().__init__()
        layout = base.layout
        if layout.discrete:
            raise ConfigError(f"decoder: the base's tokens must be continuous, they are {layout}")
        self.base = base.requires_grad_(False)
        self.shape = (layout.channels, *layout.grids[0])

    def adopt(self, tokenizer: Tokenizer | None) -> None:
        """Take the weights of the trained base."""
        if tokenizer is None:
            raise ConfigError("decoder: the trained base tokenizer is missing")
        self.base.load_state_dict(tokenizer.state_dict())

    def train(self, mode: bool = True) -> OnLatents:
        super().train(mode)
        self.base.eval()  # its statistics stand still
        return self

    def pixels(self, x_Bchw: Tensor) -> Tensor:
        """Unclamped images (B, C, H, W) of clean latents, by the base's decoder."""
        return self.base.pixels(self.base.quantizer.lookup(x_Bchw.flatten(2).transpose(1, 2)))

    def clean(self, image_BCHW: Tensor) -> Tensor:
        """The base's latents (B, c, h, w) of images."""
        return self.base.encode(image_BCHW).data.transpose(1, 2).unflatten(2, self.shape[1:])


def base_config(tokenizer: configs.Config | None) -> Autoencoder.Config:
    """The config of the base.

    Raises:
        ConfigError: it is no autoencoder.
    """
    if not isinstance(tokenizer, Autoencoder.Config):
        raise ConfigError(f"decoder: needs an autoencoder with continuous latents, not on {tokenizer!r}")
    return tokenizer


def base_of(tokenizer: configs.Config | None, shape: Shape, channels: int) -> Autoencoder:
    """The base, untrained, for images of this shape."""
    made: Autoencoder = base_config(tokenizer).build(signal=SignalSpec(shape=shape, channels=channels))
    return made


class LatentFlow(OnLatents):
    """A flow from noise to the base's latents (FlexTok, arXiv:2502.13967, on the latents of a VAE)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GenerativeDecoder.Config, tag="decoder.latent_flow", label="flow on latents"):
        """The flow, of latents instead of pixels."""

        flow: Flow.Config

        @property
        def needs(self) -> tuple[str, ...]:
            return ("tokenizer",)

        def source(self, shape: Shape, channels: int, tokenizer: configs.Config | None = None, **given: Any) -> tuple[Shape, int]:
            layout = base_config(tokenizer).quantizer.layout(base_config(tokenizer).net.grid(shape))
            return layout.grids[0], layout.channels

        def build(
            self, *, shape: Shape, channels: int, dim: int, length: int, tokenizer: configs.Config | None = None, **given: Any
        ) -> LatentFlow:
            return LatentFlow(self, base_of(tokenizer, shape, channels), dim, length)

    def __init__(self, config: Config, base: Autoencoder, dim: int, length: int) -> None:
        super().__init__(base)
        self.config = config
        self.flow: Flow = config.flow.build(shape=self.shape[1:], channels=self.shape[0], dim=dim, length=length)  # type: ignore[assignment]

    def fewest(self, length: int) -> int:
        return self.flow.fewest(length)

    def inner(self, depth: int) -> Inner:
        return self.flow.inner(depth)

    def losses(self, z_BNZ: Tensor, image_BCHW: Tensor, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those of the flow; ``reconstruction`` is the error of predicted latents."""
        return self.flow.losses(z_BNZ, self.clean(image_BCHW), draws)

    @torch.no_grad()
    def sample(self, z_BNZ: Tensor, keep_B: Tensor) -> Tensor:
        return self.pixels(self.flow.sample(z_BNZ, keep_B))

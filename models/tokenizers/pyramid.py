"""Continuous tokens of one image in several resolutions, all by one autoencoder: a plain pyramid, without residuals.

Shapes: B rows, C channels, H W image, h w a grid, L tokens of all grids, small to large.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.quantizers.gaussian import Gaussian
from tokenloom.models.parts.quantizers.grids import growing, last
from tokenloom.models.tokenizers.autoencoder import Autoencoder, checked


class Pyramid(Autoencoder):
    """A KL autoencoder, trained as ever, whose tokens are the latents of each grid; the last one alone is decoded."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config, tag="model.pyramid"):
        """``scales``: sides of the grids, of which the last is that of the whole image.  Latents of a smaller grid are those ``of`` the
        image resized (bicubic; Hi-MAR, arXiv:2505.20288) or means over areas of the ``latents`` (FlowAR, arXiv:2412.15205)."""

        scales: tuple[int, ...]
        of: Literal["images", "latents"] = "images"

        def __post_init__(self) -> None:
            super().__post_init__()
            growing(self.scales)
            if not isinstance(self.quantizer, Gaussian.Config):
                raise ConfigError(f"quantizer={self.quantizer.label}: a pyramid is of continuous latents")

    def __init__(self, config: Config, signal: SignalSpec) -> None:
        super().__init__(config, signal)
        grid = self._layout.grids[-1]
        self._layout = replace(self._layout, grids=last(config.scales, grid))
        self.factor = signal.plane[0] // grid[0], signal.plane[1] // grid[1]

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tokens:
        quantizer, config = cast(Gaussian, self.quantizer), cast(Pyramid.Config, self.config)
        means = quantizer.posterior(self.latents(image_BCHW))[0]
        each = []
        for rows, columns in self._layout.grids[:-1]:
            if config.of == "latents":
                small = F.interpolate(means, size=(rows, columns), mode="area")
            else:
                size = rows * self.factor[0], columns * self.factor[1]
                small = quantizer.posterior(self.latents(F.interpolate(image_BCHW, size=size, mode="bicubic")))[0]
            each.append(quantizer.tokens(small))
        return Tokens(torch.cat([*each, quantizer.tokens(means)], 1), self._layout)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Images of the last grid's tokens."""
        data = checked(tokens, self.layout)[:, -self._layout.scale_sizes[-1] :]
        return self.pixels(self.quantizer.lookup(data).to(self.decoder.last)).clamp(-1, 1)

"""What every quantizer offers: latents to tokens and back, with its losses.

Shapes: B rows, C channels, H W latent grid ((1, N) for 1-D tokens), L tokens (row-major), Q codebooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout


def joined(ids: list[Tensor]) -> Tensor:
    """Ids (B, L, Q) of parts with ids (B, L) or (B, L, q)."""
    return torch.cat([i if i.ndim == 3 else i[..., None] for i in ids], -1)


class Quantizer(nn.Module, ABC):
    """Between encoder and decoder; concrete ones nest a frozen ``Config``."""

    class Config(configs.Config, ABC):
        """What a quantizer is made from."""

        @abstractmethod
        def channels(self) -> tuple[int, int]:
            """Channels of the latents that it takes, and of those that it gives."""

        @abstractmethod
        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            """The tokens of a latent grid of (rows, columns).

            Raises:
                ConfigError: the quantizer does not fit the grid.
            """

        def at(self, grid: tuple[int, int]) -> Quantizer.Config:
            """The same quantizer for latents of another grid than it was trained on; what it has learned stays.

            Raises:
                ConfigError: it does not fit the grid.
            """
            return self

        def build(self, grid: tuple[int, int]) -> Quantizer:
            """The quantizer of latents on this grid, with a fresh codebook.

            Raises:
                ConfigError: the grid is not one that it codes.
            """
            self.layout(grid)
            return self.construct(grid=grid)

    @abstractmethod
    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; in training with ``draws`` the codebook's statistics take the batch in."""

    @abstractmethod
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L) or (B, L, Q), or latents (B, L, C) of a continuous one; deterministic."""

    @abstractmethod
    def lookup(self, data: Tensor) -> Tensor:
        """The latents (B, C, H, W) that such ids or latents stand for."""

    def given(self, z_BCHW: Tensor, draws: Draws) -> Tensor:
        """The latents that a decoder is given in training, for a judge of its images: nothing is observed."""
        return self(z_BCHW).z

    def weighed(self, losses: dict[str, Tensor], values: int) -> dict[str, Tensor]:
        """The losses of images of so many values (C H W), beside a mean over these values."""
        return losses

    @property
    def ready(self) -> bool:
        """False until a codebook that starts from data has done so; the same on all ranks."""
        return True

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Updates once an optimizer step on every rank, the only place for collectives; metrics to report."""
        return {}

    def finish(self, latents: Iterator[Tensor]) -> None:
        """Called once after the last step with latents of some training batches, the same on every rank: statistics set post training."""

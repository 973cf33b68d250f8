"""SimVQ: the codebook is one linear map of a table that never moves (arXiv:2411.02038).

A step that moves the map moves every code, so none is left behind.  Shapes: B rows, C channels, H W grid, L = H W, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact, nearest
from tokenloom.models.parts.quantizers.gradients import Gradient, Straight
from tokenloom.models.parts.quantizers.usage import Usage


class SimVQ(Quantizer):
    """Codes W e_k of a fixed normal table e and a learned map W."""

    table: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="codebook.simvq", label="VQ, mapped table"):
        """``weight`` is that of the codebook loss, ``beta`` that of the commitment loss beside it; ``table`` channels of the table that is
        mapped (0: as many as a code has); the ``map`` is linear, or affine as in the released code."""

        codes: int
        dim: int
        weight: float = 1.0
        beta: float = 0.25
        gradient: Gradient = Straight()
        table: Added[int] = 0
        map: Added[Literal["linear", "affine"]] = "linear"

        def __post_init__(self) -> None:
            if self.codes < 2 or self.dim < 1 or self.table < 0:
                raise ConfigError(
                    f"quantizer.codes={self.codes}, dim={self.dim}, table={self.table}: at least 2 codes of at least 1 channel"
                )
            if self.weight <= 0 or self.beta < 0:
                raise ConfigError(f"quantizer.weight={self.weight}, beta={self.beta}: weight positive, beta not negative")

        def channels(self) -> tuple[int, int]:
            return self.dim, self.dim

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), vocabulary=self.codes)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        width = config.table or config.dim
        self.register_buffer("table", torch.randn(config.codes, width) * width**-0.5)
        self.codebook = nn.Linear(width, config.dim, bias=config.map == "affine")
        self.usage = Usage(config.codes)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; the losses are equation 3 of arXiv:1711.00937 for the mapped codes."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BHWC = exact(z_BCHW).permute(0, 2, 3, 1)
            code_KC = self.codebook(self.table)
            ids_BL = nearest(z_BHWC.flatten(0, 2), code_KC).view(len(z_BHWC), -1)
            q_BHWC = F.embedding(ids_BL, code_KC).view_as(z_BHWC)
            losses = {
                "codebook": self.config.weight * F.mse_loss(q_BHWC, z_BHWC.detach()),
                "commitment": self.config.weight * self.config.beta * F.mse_loss(z_BHWC, q_BHWC.detach()),
            }
            z_BHWC = self.config.gradient(z_BHWC, q_BHWC)
        usage = self.usage.count([ids_BL])
        if self.training and draws is not None:
            self.usage.observe(usage)
        return Quantized(z_BHWC.permute(0, 3, 1, 2), ids_BL, losses, {"usage": usage})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L), row-major."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return nearest(exact(z_BCHW).permute(0, 2, 3, 1).flatten(0, 2), self.codebook(self.table)).view(len(z_BCHW), -1)

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """Codes (B, C, H, W) of ids."""
        return self.codebook(F.embedding(ids_BL, self.table)).transpose(1, 2).unflatten(2, self.grid)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Use and perplexity."""
        return self.usage.after_step()

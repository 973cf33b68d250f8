"""A transformer between the codes of 1-D tokens and what decodes them (D-AR's token decoder, arXiv:2505.23660).

Shapes: B rows, N tokens, Z channels of a code, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.parts.nets.vit import Blocks
from tokenloom.models.parts.visibility import Causal


class TokenReader(nn.Module):
    """A token's vector says what it and all before it mean, never what follows: a prefix is read as in the whole."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="decoder.reader"):
        """Its blocks; the width is that of what decodes."""

        blocks: Blocks.Config

        @property
        def width(self) -> int:
            """Channels of a token that has been read."""
            return self.blocks.width

        def build(self, dim: int, length: int) -> TokenReader:
            return self.construct(dim, length)

    def __init__(self, config: Config, dim: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(length, config.width))
        self.stack = config.blocks.build()
        self.norm = nn.LayerNorm(config.width, config.blocks.eps)

    def forward(self, z_BNZ: Tensor) -> Tensor:
        """(B, N, Z) to (B, N, D)."""
        return self.norm(self.stack(self.embed(z_BNZ) + self.position, Causal()))

"""BERT's embeddings of masked tokens: positions, a segment vector, and a layer norm.

Shapes: B rows, S slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import Added
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.feeds.masked import MaskToken


class BertTokens(MaskToken):
    """``MaskToken`` whose slots are normed before the net (arXiv:1810.04805), as in MaskGIT and TiTok's generator."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MaskToken.Config, tag="feed.bert", label="tokens and [MASK]"):
        """``eps`` of the layer norm; ``segments`` rows of a table of which only the first is used (0: none).

        ``mixed``: whether a linear map follows the norm (MaskGIT's own has one, TiTok's none).
        """

        prefix: int = 1
        eps: float = 1e-12
        segments: int = 0
        mixed: Added[Literal["yes", "no"]] = "no"

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.segment: nn.Parameter | None = None
        if config.segments:
            self.segment = nn.Parameter(torch.empty(config.segments, width))
            nn.init.trunc_normal_(self.segment, std=config.init_std)
        self.mix = nn.Linear(width, width) if config.mixed == "yes" else nn.Identity()
        if isinstance(self.mix, nn.Linear):
            nn.init.trunc_normal_(self.mix.weight, std=config.init_std)
            nn.init.zeros_(self.mix.bias)

    def embed(self, x_BSD: Tensor) -> Tensor:
        x = super().embed(x_BSD)
        return self.mix(self.norm(x if self.segment is None else x + self.segment[0]))

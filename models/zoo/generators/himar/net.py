"""A masked autoencoder over two grids, pivots and dense tokens, that is passed twice with tables of its own (Hi-MAR, arXiv:2505.20288).

Shapes: B rows, P buffer slots, L positions of both grids (pivots first), D width, T passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.visibility import EVERYTHING, Mask, Visibility
from tokenloom.models.zoo.generators.himar.norm import TaskNorm

PASSES = 2


class PivotAutoencoder(nn.Module):
    """The encoder's slots attend to what is known; the decoder has a learned vector of each unknown position and attends to everything.

    The first pass predicts pivots, so that all dense tokens are unknown to it; the second one predicts dense tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="net.pivot_autoencoder", label="masked autoencoder, two passes"):
        """``encoder`` and ``decoder`` have one width and norms of two tasks; ``buffer`` slots of the condition stand before the tokens."""

        encoder: Transformer.Config
        decoder: Transformer.Config
        buffer: int = 64

        def __post_init__(self) -> None:
            halves = self.encoder, self.decoder
            if halves[0].width != halves[1].width:
                raise ConfigError(f"net.encoder.width={halves[0].width}, net.decoder.width={halves[1].width}: must be equal")
            if any(not isinstance(half.norm, TaskNorm.Config) or half.norm.tasks != PASSES for half in halves):
                raise ConfigError(f"net: the norms of both halves must be those of {PASSES} tasks")

        @property
        def width(self) -> int:
            """Of encoder and decoder."""
            return self.encoder.width

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        width, self.buffer = config.width, config.buffer
        # Net-wide rotary tables are not used: positions are learned, so that the blocks need no layout of two grids.
        self.encoder, self.decoder = (cast(Transformer, half.build(layout)) for half in (config.encoder, config.decoder))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.between = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.between.weight)
        nn.init.zeros_(self.between.bias)
        slots = config.buffer + layout.length
        self.position, self.position_between = (nn.Parameter(torch.empty(PASSES, slots, width)) for _ in range(2))
        self.mask = nn.Parameter(torch.empty(PASSES, layout.length, width))
        self.position_out = nn.Parameter(torch.empty(layout.length, width))
        for weight in (self.position, self.position_between, self.mask, self.position_out):
            nn.init.normal_(weight, std=0.02)

    def forward(self, which: int, x_BLD: Tensor, vector_BD: Tensor, known_BL: Tensor, draws: Draws | None = None) -> Tensor:
        """Hidden states (B, L, D) of a pass, 0 or 1, from embedded tokens of which some are known, and the condition's vectors."""
        x = torch.cat([vector_BD[:, None].expand(-1, self.buffer, -1), x_BLD], 1) + self.position[which]
        seen = F.pad(known_BL, (self.buffer, 0), value=True)
        encoded = self.encoded(which, self.norm(x), Mask(seen[:, None]), draws)
        hidden = F.pad(self.mask[which], (0, 0, self.buffer, 0)).to(encoded)
        h = torch.where(seen.unsqueeze(-1), self.between(encoded), hidden) + self.position_between[which]
        return self._run(self.decoder, which, h, EVERYTHING, draws)[:, self.buffer :] + self.position_out

    def encoded(self, which: int, x_BSD: Tensor, visibility: Visibility, draws: Draws | None = None) -> Tensor:
        """States (B, S, D) of the encoder; those of unknown slots are not for reading."""
        return self._run(self.encoder, which, x_BSD, visibility, draws)

    @staticmethod
    def _run(net: Transformer, which: int, x_BSD: Tensor, visibility: Visibility, draws: Draws | None) -> Tensor:
        task = F.one_hot(torch.tensor(which, device=x_BSD.device), PASSES).to(x_BSD)[None, None]
        place = torch.full((1, x_BSD.shape[1]), -1, device=x_BSD.device)
        return net.norm.last(net.stack(x_BSD, place, visibility, task, None, draws), task)

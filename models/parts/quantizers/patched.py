"""Bits of 2x2 cells as one token: a multi-scale bitwise quantizer for generators that see a quarter of the positions.

Shapes: B rows, D bits of a cell, P tokens of a scale, each of p x p cells, h w a scale's grid of cells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.parts.quantizers.grids import at_aspect, pair
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ


class Patched(nn.Module):
    """The bits of a token are those of its cells, in the order of pixel-unshuffle (Infinity's spatial patchify, arXiv:2412.04431)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiScaleBSQ.Config, tag="quantizer.patched"):
        """``scales`` count cells, each divisible by ``side``."""

        side: int = 2

        def channels(self) -> tuple[int, int]:
            return self.bits * self.side**2, self.bits * self.side**2

        def at(self, grid: tuple[int, int]) -> Patched.Config:
            tokens = tuple((h // self.side, w // self.side) for h, w in map(pair, self.scales))
            return replace(self, scales=tuple((h * self.side, w * self.side) for h, w in map(pair, at_aspect(tokens, grid))))

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            """The tokens of a grid of (rows, columns) of tokens, each of ``side`` x ``side`` cells."""
            cells = super().layout((grid[0] * self.side, grid[1] * self.side))
            grids = tuple((h // self.side, w // self.side) for h, w in cells.grids)
            return TokenLayout(grids=grids, vocabulary=2, codebooks=self.channels()[0])

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.side = config, config.side
        self.cells = MultiScaleBSQ(config)

    def _fold(self, data_BPD: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens of one scale to cells, (B, h w, D)."""
        map_BDPP = data_BPD.transpose(1, 2).unflatten(2, (size[0] // self.side, size[1] // self.side))
        return F.pixel_shuffle(map_BDPP, self.side).flatten(2).transpose(1, 2)

    def unfold(self, data_BhwD: Tensor, size: tuple[int, int]) -> Tensor:
        """Cells of one scale to tokens, (B, P, p p D)."""
        return F.pixel_unshuffle(data_BhwD.transpose(1, 2).unflatten(2, size), self.side).flatten(2).transpose(1, 2)

    def start(self, rows: int) -> Tensor:
        """The sum before the first scale: zeros (B, D, H, W) of cells."""
        return self.cells.start(rows)

    def accumulate(self, f_hat_BDHW: Tensor, scale: int, bit_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Decoding one scale at a time: the new sum of cells, and the next scale's input of tokens (B, P', p p D)."""
        scales = self.cells.scales
        f_hat_BDHW, following = self.cells.accumulate(f_hat_BDHW, scale, self._fold(bit_BPD, scales[scale]))
        return f_hat_BDHW, self.unfold(following, scales[min(scale + 1, len(scales) - 1)])

    def next_inputs(self, bit_BLD: Tensor) -> Tensor:
        """Teacher forcing: what each scale but the first is given, (B, L - first scale, p p D)."""
        f_hat, inputs = self.start(len(bit_BLD)), []
        parts = bit_BLD.split([h * w // self.side**2 for h, w in self.cells.scales], dim=1)
        for scale, bits in enumerate(parts[:-1]):
            f_hat, following = self.accumulate(f_hat, scale, bits)
            inputs.append(following)
        return torch.cat(inputs, 1)

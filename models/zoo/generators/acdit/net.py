"""A diffusion transformer over noisy blocks, each of which sees the clean blocks before it (ACDiT, arXiv:2412.07720).

Shapes: B rows, L positions in block order, n = L / T positions of a block, T blocks, C channels, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN, Branch
from tokenloom.models.parts.time import TimeEmbedding
from tokenloom.models.parts.visibility import EVERYTHING, Mask, Visibility


def rotary(coordinate_AL: Tensor, lengths: tuple[int, ...], split: tuple[int, ...], head_width: int) -> Tensor:
    """(L, E/2, 4) tables of ``rotate`` for positions on A axes of these lengths, which share the channels as ``split`` says.

    The table of an axis has ``base^(-j / (k - 1))`` for its k = channels / 2 frequencies, twice; base is the multiple of 100 above
    8 length / pi.  Channel c is paired with c + E/2, whatever their axes, as the released models have it.

    Raises:
        ConfigError: the split does not divide the head's channels.
    """
    if len(split) != len(lengths) or min(split) < 1 or head_width % (2 * sum(split)):
        raise ConfigError(
            f"split={split}: one share for each of {len(lengths)} axes, which together divide {head_width // 2}, half a head's width"
        )
    angles = []
    for x_L, length, share in zip(coordinate_AL, lengths, split):
        count = share * (head_width // 2 // sum(split))
        base = float((int(8 * length / math.pi) // 100 + 1) * 100)
        rate = 1.0 / base ** (torch.linspace(0, head_width, count) / head_width)
        angles += [x_L[:, None].float() * rate] * 2
    near, far = torch.cat(angles, 1).chunk(2, 1)
    return torch.stack([near.cos(), near.sin(), far.cos(), far.sin()], -1)


def skip_causal(blocks: int, size: int, device: torch.device) -> Tensor:
    """(2 L, 2 L) true where a slot of [clean, noisy] attends to another: clean blocks to clean ones that are not later, noisy blocks to
    earlier clean ones and to themselves (section 3.3)."""
    block = torch.arange(blocks, device=device).repeat_interleave(size)
    query, key = block[:, None], block[None]
    clean = torch.cat([key <= query, torch.zeros_like(key <= query)], 1)
    return torch.cat([clean, torch.cat([key < query, key == query], 1)], 0)


class SkipCausal(nn.Module):
    """Noise predicted for noisy blocks; clean blocks run beside them without time and class."""

    rotations: Tensor

    def __init__(self, net: Transformer.Config, layout: TokenLayout, channels: int, rotations: Tensor, blocks: int) -> None:
        super().__init__()
        self.blocks, self.size = blocks, layout.length // blocks
        self.enter = nn.Linear(channels, net.width, bias=False)
        self.time = TimeEmbedding(net.width, frequencies=128, unit=1.0)
        self.net = cast(Transformer, net.build(layout))
        self.out = nn.Linear(net.width, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("rotations", rotations, persistent=False)

    def condition(self, t_BT: Tensor, vector_BD: Tensor) -> Tensor:
        """(B, T, D) what modulates each noisy block."""
        return self.time(t_BT) + vector_BD[:, None]

    def forward(self, clean_BLC: Tensor, noisy_BLC: Tensor, t_BT: Tensor, vector_BD: Tensor) -> Tensor:
        """(B, L, C) predictions for all noisy blocks at times (B, T) at once."""
        x, cond = self.enter(torch.cat([clean_BLC, noisy_BLC], 1)), self.condition(t_BT, vector_BD)
        seen = Mask(skip_causal(self.blocks, self.size, x.device)[None])
        h = self._stack(x, torch.cat([self.rotations] * 2), seen, self._beside(clean_BLC.shape[1]), cond, None)
        return self._read(h[:, clean_BLC.shape[1] :], cond)

    def read(self, clean_BnC: Tensor, block: int, cache: list[LayerCache]) -> None:
        """Put a clean block into the cache, which has all earlier ones."""
        self._stack(self.enter(clean_BnC), self._of(block), EVERYTHING, self._beside(clean_BnC.shape[1]), None, cache)

    def denoise(self, noisy_BnC: Tensor, t_B: Tensor, vector_BD: Tensor, block: int, cache: list[LayerCache]) -> Tensor:
        """(B, n, C) the prediction for one noisy block, given a cache of the clean ones before it, which stays as it is."""
        cond, used = self.condition(t_B[:, None], vector_BD), cache[0].used
        h = self._stack(self.enter(noisy_BnC), self._of(block), EVERYTHING, self._beside(0), cond, cache)
        for layer in cache:
            layer.truncate(used)
        return self._read(h, cond)

    def cache(self, rows: int) -> list[LayerCache]:
        """Room for all positions."""
        return self.net.cache(rows, self.blocks * self.size, self.enter.weight)

    def _of(self, block: int) -> Tensor:
        return self.rotations[block * self.size : (block + 1) * self.size]

    def _stack(
        self,
        x: Tensor,
        rotations: Tensor,
        seen: Visibility,
        beside: Callable[[Branch], Branch],
        cond: Tensor | None,
        cache: list[LayerCache] | None,
    ) -> Tensor:
        norm = cast(AdaLN, self.net.norm)
        nothing = x.new_zeros(())
        for i in range(len(self.net.attention)):
            given: list[Branch] = [(nothing + 1, nothing, nothing)] * 2
            if cond is not None:
                given = [beside(cast(Branch, how)) for how in norm.modulate(i, cond, None)]
            x = self.net.block(i, x, seen, rotations[None, None], list(given), cache[i] if cache else None, None)
        return x

    def _beside(self, clean: int) -> Callable[[Branch], Branch]:
        """Values of noisy blocks at their positions, after so many clean ones, which are neither scaled, shifted nor gated."""

        def spread(how: Branch) -> Branch:
            gamma, scale, shift = (F.pad(v.repeat_interleave(self.size, 1), (0, 0, clean, 0)) for v in how)
            return torch.cat([torch.ones_like(gamma[:, :clean]), gamma[:, clean:]], 1), scale, shift

        return spread

    def _read(self, h_BSD: Tensor, cond_BTD: Tensor) -> Tensor:
        return self.out(self.net.norm.last(h_BSD, cond_BTD.repeat_interleave(self.size, 1)))

"""Product quantization: channels cut into groups, each with its own codebook (arXiv:2305.02765; product quantization, Jégou et al. 2011).

Shapes: B rows, C channels, H W grid, L = H W, Q codebooks (groups times those of a group).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer, joined


class Grouped(Quantizer):
    """``groups`` quantizers side by side on equal shares of the channels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.grouped", label="product"):
        """``part`` quantizes one group; ``shared`` books are one for all groups, each coded as a position of its own."""

        part: Quantizer.Config
        groups: int = 2
        books: Added[Literal["separate", "shared"]] = "separate"

        def __post_init__(self) -> None:
            if self.groups < 1:
                raise ConfigError(f"quantizer.groups={self.groups}: must be at least 1")

        def channels(self) -> tuple[int, int]:
            taken, given = self.part.channels()
            return self.groups * taken, self.groups * given

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            inner = self.part.layout(grid)
            if not inner.discrete or len(inner.grids) > 1:
                raise ConfigError(f"quantizer.part={type(self.part).__qualname__}: a part has ids on one grid")
            return replace(inner, codebooks=self.groups * inner.codebooks)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.books = config.layout(grid).codebooks // config.groups
        self.shared = config.books == "shared"
        # positions of shared books: the groups' grids, one below the other
        stacked = (config.groups * grid[0], grid[1])
        self.parts = nn.ModuleList([config.part.build(stacked)] if self.shared else [config.part.build(grid) for _ in range(config.groups)])

    @property
    def ready(self) -> bool:
        return all(cast(Quantizer, part).ready for part in self.parts)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; losses are means over the groups, so that they are as large as one quantizer's of all channels."""
        if self.shared:
            quantized = self.parts[0](self._stack(z_BCHW), draws)
            quantized.z, quantized.ids = self._unstack(quantized.z), self._beside(quantized.ids)
            return cast(Quantized, quantized)
        pieces = z_BCHW.chunk(len(self.parts), 1)
        found = [part(z, None if draws is None else draws.fork(f"group{i}")) for i, (part, z) in enumerate(zip(self.parts, pieces))]
        losses = {name: torch.stack([q.losses[name] for q in found]).mean() for name in found[0].losses}
        usage = torch.cat([q.stats["usage"] for q in found])
        return Quantized(torch.cat([q.z for q in found], 1), joined([q.ids for q in found]), losses, {"usage": usage})

    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L, Q), the first group first."""
        if self.shared:
            return self._beside(cast(Quantizer, self.parts[0]).encode(self._stack(z_BCHW)))
        return joined([cast(Quantizer, part).encode(z) for part, z in zip(self.parts, z_BCHW.chunk(len(self.parts), 1))])

    def lookup(self, ids_BLQ: Tensor) -> Tensor:
        """Codes (B, C, H, W)."""
        if self.shared:
            below = ids_BLQ.unflatten(-1, (self.config.groups, self.books)).movedim(2, 1).flatten(1, 2)
            return self._unstack(cast(Quantizer, self.parts[0]).lookup(below if self.books > 1 else below[..., 0]))
        pieces = [ids if self.books > 1 else ids[..., 0] for ids in ids_BLQ.split(self.books, -1)]
        return torch.cat([cast(Quantizer, part).lookup(ids) for part, ids in zip(self.parts, pieces)], 1)

    def _stack(self, z_BCHW: Tensor) -> Tensor:
        """The groups' channels one below the other, (B, C / groups, groups H, W)."""
        return torch.cat(z_BCHW.chunk(self.config.groups, 1), 2)

    def _unstack(self, z_BChW: Tensor) -> Tensor:
        return torch.cat(z_BChW.chunk(self.config.groups, 2), 1)

    def _beside(self, ids: Tensor) -> Tensor:
        """Ids (B, groups L) or (B, groups L, q) of stacked groups as (B, L, Q)."""
        return joined(list(ids.chunk(self.config.groups, 1)))

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Each group's update; metrics by codebook."""
        if self.shared:
            return cast(Quantizer, self.parts[0]).after_step(draws)
        found = [cast(Quantizer, part).after_step(draws) for part in self.parts]
        return {f"{name}_book{i}": value for i, metrics in enumerate(found) for name, value in metrics.items()}

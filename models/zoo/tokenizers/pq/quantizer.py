"""Product quantization: channels cut into groups, each with its own codebook (arXiv:2305.02765; product quantization, Jégou et al. 2011).

Shapes: B rows, C channels, H W grid, L = H W, Q codebooks (groups times those of a group).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer, joined


class Grouped(Quantizer):
    """``groups`` quantizers side by side on equal shares of the channels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.grouped", label="product"):
        """``part`` quantizes one group."""

        part: Quantizer.Config
        groups: int = 2

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
        self.parts = nn.ModuleList(config.part.build(grid) for _ in range(config.groups))

    @property
    def ready(self) -> bool:
        return all(cast(Quantizer, part).ready for part in self.parts)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; losses are means over the groups, so that they are as large as one quantizer's of all channels."""
        pieces = z_BCHW.chunk(len(self.parts), 1)
        found = [part(z, None if draws is None else draws.fork(f"group{i}")) for i, (part, z) in enumerate(zip(self.parts, pieces))]
        losses = {name: torch.stack([q.losses[name] for q in found]).mean() for name in found[0].losses}
        usage = torch.cat([q.stats["usage"] for q in found])
        return Quantized(torch.cat([q.z for q in found], 1), joined([q.ids for q in found]), losses, {"usage": usage})

    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L, Q), the first group first."""
        return joined([cast(Quantizer, part).encode(z) for part, z in zip(self.parts, z_BCHW.chunk(len(self.parts), 1))])

    def lookup(self, ids_BLQ: Tensor) -> Tensor:
        """Codes (B, C, H, W)."""
        pieces = [ids if self.books > 1 else ids[..., 0] for ids in ids_BLQ.split(self.books, -1)]
        return torch.cat([cast(Quantizer, part).lookup(ids) for part, ids in zip(self.parts, pieces)], 1)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Each group's update; metrics by codebook."""
        found = [cast(Quantizer, part).after_step(draws) for part in self.parts]
        return {f"{name}_book{i}": value for i, metrics in enumerate(found) for name, value in metrics.items()}

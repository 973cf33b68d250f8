"""Orders that depend on the layout alone: raster, scales, diagonals, cells, distant tokens in parallel, patches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.orders.base import Fixed
from tokenloom.models.parts.plan import Plan, grouped


@dataclass(frozen=True, kw_only=True)
class Raster(Fixed, tag="order.raster"):
    """One position a group, in storage order: scale by scale, row by row (LlamaGen, taming transformers)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return Plan(torch.arange(layout.length)[None], (1,) * layout.length)

    def traits(self, plan: Plan) -> Traits:
        return {"positions in storage order": Trait("yes", "order")}


@dataclass(frozen=True, kw_only=True)
class Scales(Fixed, tag="order.scales"):
    """All positions of a scale at once, small to large (VAR, arXiv:2404.02905); ``window`` as in HMAR."""

    window: int | None = None

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return grouped([(t, s) for t, s, _, _ in layout.positions.tolist()], self.window)


@dataclass(frozen=True, kw_only=True)
class WeighedScales(Scales, tag="order.weighted_scales", label="scales, weighted"):
    """Scales whose loss weighs a position by the inverse root of its scale's area, so that large scales do not outweigh the small ones
    that they depend on (Infinity, arXiv:2412.04431)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        weight = torch.tensor([n**-0.5 for n in layout.scale_sizes])[layout.positions[:, 1]][None]
        return replace(super().plan(layout), weight_BL=weight / weight.sum())


@dataclass(frozen=True, kw_only=True)
class SomeScales(Scales, tag="order.some_scales", label="scales, some left out"):
    """Scales, of which training leaves out some: each but the first and the last with probability ``drop``, the same for the whole
    batch (FlexVAR, arXiv:2502.20313); for tokens whose scales stand alone."""

    drop: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ConfigError(f"order.drop={self.drop}: must be in [0, 1)")

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        whole = super().plan(layout)
        if draws is None:
            return whole
        keep = (draws.host_uniform(whole.groups) >= self.drop).tolist()
        keep[0] = keep[-1] = True
        groups = [g for g in range(whole.groups) if keep[g]]
        sequence = torch.cat([whole.members(g) for g in groups], dim=1)
        return Plan(sequence, tuple(whole.sizes[g] for g in groups), whole.window)


@dataclass(frozen=True, kw_only=True)
class Diagonals(Fixed, tag="order.diagonals"):
    """All positions of equal Manhattan distance from the corner at once (NAR, arXiv:2503.10696)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        return grouped([(t, s, r + c) for t, s, r, c in layout.positions.tolist()])


@dataclass(frozen=True, kw_only=True)
class Regions(Fixed, tag="order.regions", label="distant tokens in parallel"):
    """Distant tokens in parallel (PAR, arXiv:2412.15119): the grid is cut into ``across`` x ``across`` regions.

    The first token of each region comes alone, one after the other; from then on a group holds the tokens at one
    offset in all regions, offsets in raster order.
    """

    across: int = 2

    def __post_init__(self) -> None:
        if self.across < 1:
            raise ConfigError(f"order.across={self.across}: must be at least 1")

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        n, (high, wide) = self.across, cells_of(layout, self.across)

        def key(row: int, column: int) -> tuple[int, int]:
            offset, region = row % high * wide + column % wide, row // high * n + column // wide
            return (offset, region if offset == 0 else 0)

        plan = grouped([key(r, c) for _, _, r, c in layout.positions.tolist()])
        # Inside a group the regions are in raster order, which is the storage order of tokens with equal offsets.
        return plan


@dataclass(frozen=True, kw_only=True)
class Cells(Fixed, tag="order.cells", label="cells"):
    """The grid cut into ``across`` x ``across`` cells in raster order, each of which is a group (xAR, arXiv:2502.20388, section 3.2):
    of one position each it is raster order, of the whole grid one group."""

    across: int = 2

    def __post_init__(self) -> None:
        if self.across < 1:
            raise ConfigError(f"order.across={self.across}: must be at least 1")

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        high, wide = cells_of(layout, self.across)
        return grouped([(r // high, c // wide) for _, _, r, c in layout.positions.tolist()])


@dataclass(frozen=True, kw_only=True)
class Subsamples(Cells, tag="order.subsamples", label="evenly spaced tokens"):
    """Evenly spaced tokens at once: those at one offset in all of ``across`` x ``across`` cells, offsets in raster order (xAR)."""

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        high, wide = cells_of(layout, self.across)
        return grouped([(r % high, c % wide) for _, _, r, c in layout.positions.tolist()])


def cells_of(layout: TokenLayout, across: int) -> tuple[int, int]:
    """Rows and columns of a cell.

    Raises:
        LayoutError: several grids, or one that cannot be cut so.
    """
    rows, columns = layout.grids[-1]
    if len(layout.grids) > 1 or layout.frames > 1 or rows % across or columns % across:
        raise LayoutError(f"order.across={across}: needs one grid that is divisible by it, not {layout.grids}")
    return rows // across, columns // across


@dataclass(frozen=True, kw_only=True)
class Patches(Fixed, tag="order.patches", label="patches, coarse to fine"):
    """Square patches in raster order, large ones first in training (Next Patch Prediction, arXiv:2412.15321).

    ``sides`` are the patches' sides and ``until`` the shares of training at which each but the last ends.  Decoding
    uses the last one; a side of 1 is raster order.
    """

    sides: tuple[int, ...] = (2, 1)
    until: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if not self.sides or min(self.sides) < 1 or len(self.until) != len(self.sides) - 1 or list(self.until) != sorted(self.until):
            raise ConfigError(
                f"order.sides={list(self.sides)}, until={list(self.until)}: give positive sides and one growing share for each but the last"
            )

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        progress = 1.0 if draws is None else draws.progress
        return self.of_side(layout, self.sides[sum(progress >= end for end in self.until)])

    def of_side(self, layout: TokenLayout, side: int) -> Plan:
        """The plan of one patch size; a patch stands where its row and column of patches are."""
        rows, columns = layout.grids[-1]
        if len(layout.grids) > 1 or layout.frames > 1 or rows % side or columns % side:
            raise LayoutError(f"order.sides={list(self.sides)}: {side} does not divide the grid {layout.grids}")
        plan = grouped([(r // side, c // side) for _, _, r, c in layout.positions.tolist()])
        place = torch.arange(rows // side)[:, None] * columns + torch.arange(columns // side)
        return Plan(plan.sequence_BL, plan.sizes, place_BG=place.reshape(1, -1))

"""Scales in drawn sequences.  Shapes: L positions of all grids that are stored, G groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.fixed import Scales
from tokenloom.models.parts.orders.sizes import Count, Shares, Sizes, Steps
from tokenloom.models.parts.plan import Plan

#: The released schedules of ten and of thirteen steps.
TEN = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
THIRTEEN = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16)


@dataclass(frozen=True, kw_only=True)
class DrawnScales(Order, tag="order.drawn_scales", label="scales, drawn"):
    """A sequence of grids is drawn for each batch (FlexVAR, arXiv:2502.20313); for tokens whose scales stand alone.

    The layout stores more grids than a sequence takes, best those of all sides.  With the share ``usual`` a batch takes the first
    of ``schedules``; else the sides up to ``lead``, of each band (from, to, number) as many at random as there are, and the last one.
    With the chances ``drop`` one more of those between lead and last is left out, and while the sequence has more than ``most``
    positions, one of its last four.  Decoding takes the first schedule of a layout that stores all sides, the last one and
    all larger grids of a layout beyond it, all grids of any other, or as many of them as steps are asked for.
    """

    schedules: tuple[tuple[int, ...], ...] = (TEN, THIRTEEN)
    usual: float = 0.05
    lead: int = 2
    bands: tuple[tuple[int, int, int], ...] = ((3, 10, 5), (11, 15, 2))
    drop: tuple[float, ...] = (0.1, 0.05, 0.02, 0.01)
    most: int = 680

    def __post_init__(self) -> None:
        if not self.schedules or not 0 <= self.usual <= 1 or self.most < 1:
            raise ConfigError(f"order.schedules={self.schedules}, usual={self.usual}, most={self.most}: one schedule, a share, at least 1")
        if any(low > high or count < 1 for low, high, count in self.bands):
            raise ConfigError(f"order.bands={self.bands}: each is the first side, the last side and how many are drawn, at least 1")
        if list(self.drop) != sorted(self.drop, reverse=True) or any(not 0 <= chance < 1 for chance in self.drop):
            raise ConfigError(f"order.drop={list(self.drop)}: falling chances, at least 0 and less than 1")

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        return self._of(layout, self._scheduled(layout) if draws is None else self.sequence(layout, draws))

    def sequence(self, layout: TokenLayout, draws: Draws) -> list[int]:
        """Indices of the layout's grids that one batch is trained on, rising."""
        sides, areas = self._sides(layout), layout.scale_sizes
        numbers = iter(draws.host_uniform(len(sides) * 3 + len(self.drop) + 2).tolist())
        if next(numbers) < self.usual:
            return self._scheduled(layout)
        rank = [next(numbers) for _ in sides]
        found = {0, len(sides) - 1} | {i for i, side in enumerate(sides) if side <= self.lead}
        for low, high, count in self.bands:
            inside = [i for i, side in enumerate(sides[:-1]) if low <= side <= high]
            found |= set(sorted(inside, key=rank.__getitem__)[:count])
        chosen, chance = sorted(found), next(numbers)
        for share in self.drop:
            first = max(1, sum(sides[i] <= self.lead for i in chosen))
            if chance < share and first < len(chosen) - 1:
                chosen.pop(first + int(next(numbers) * (len(chosen) - 1 - first)))
        while sum(areas[i] for i in chosen) > self.most and len(chosen) > 1:
            last = min(4, len(chosen) - 1)
            chosen.pop(len(chosen) - 1 - int(next(numbers) * last))
        return chosen

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        if sizes is None:
            return self._of(layout, self._scheduled(layout))
        if isinstance(sizes, Shares):
            return self._of(layout, self._listed(layout, sizes.shares))
        if not isinstance(sizes, Steps | Count) or not 2 <= sizes.count <= len(layout.grids):
            raise ConfigError(
                f"sample.steps={getattr(sizes, 'count', sizes)}: there are {len(layout.grids)} grids, of which at least 2 are taken; "
                "store more (tokenizer.args.scales), or ask for fewer steps"
            )
        for schedule in self.schedules:
            known = [i for i, side in enumerate(self._sides(layout)) if side in schedule]
            if len(known) == len(schedule) == sizes.count and self._sides(layout)[-1] == schedule[-1]:
                return self._of(layout, known)
        return self._of(layout, spread(len(layout.grids), sizes.count))

    def _scheduled(self, layout: TokenLayout) -> list[int]:
        sides, longest = self._sides(layout), self.schedules[-1]
        if sides[-1] > longest[-1] and set(longest) <= set(sides):  # larger than any image of training: its schedule, then what is beyond
            return [i for i, side in enumerate(sides) if side in longest or side > longest[-1]]
        every = sides == list(range(1, len(sides) + 1))
        return [i for i, side in enumerate(sides) if not every or side in self.schedules[0] or i == len(sides) - 1]

    @staticmethod
    def _listed(layout: TokenLayout, areas: tuple[int, ...]) -> list[int]:
        """The grids of so many positions each."""
        known = layout.scale_sizes
        chosen = [known.index(area) for area in areas if area in known]
        if len(chosen) < len(areas) or sorted(set(chosen)) != chosen or not chosen or chosen[0] or chosen[-1] != len(known) - 1:
            raise ConfigError(f"sample.steps={list(areas)}: give positions of stored grids, first and last too: {list(known)}")
        return chosen

    def _of(self, layout: TokenLayout, chosen: list[int]) -> Plan:
        whole = Scales().plan(layout)
        return Plan(torch.cat([whole.members(i) for i in chosen], dim=1), tuple(whole.sizes[i] for i in chosen), whole.window)

    @staticmethod
    def _sides(layout: TokenLayout) -> list[int]:
        if layout.frames > 1:
            raise LayoutError(f"order: drawn scales need one frame, not {layout.frames}")
        return [max(grid) for grid in layout.grids]


def spread(grids: int, count: int) -> list[int]:
    """``count`` of so many grids from the first to the last, evenly."""
    return [round(i * (grids - 1) / (count - 1)) for i in range(count)]

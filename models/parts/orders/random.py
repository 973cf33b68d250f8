"""Random orders: a permutation for each row, any cut into groups when decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws, permutations
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.fixed import Raster
from tokenloom.models.parts.orders.sizes import Even, Sizes, rule_of
from tokenloom.models.parts.plan import Plan, known_first


@dataclass(frozen=True, kw_only=True)
class Random(Order, tag="order.random"):
    """A fresh permutation for each row (RandAR, ARPG, sigma-GPT): groups of ``size`` in training, ``decoding`` when sampling."""

    size: int = 1
    decoding: Sizes = Even()

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        if draws is None:
            raise ValueError("a random order needs draws")
        return Plan(draws.permutation(layout.length), Even(size=self.size).cut(layout.length))

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        return Plan(permutations(layout.length, draws), rule_of(self.decoding, sizes).cut(layout.length))

    def around(self, plan: Plan, keep_L: Tensor, sizes: Sizes | None = None) -> Plan:
        return known_first(plan, keep_L, rule_of(self.decoding, sizes))


@dataclass(frozen=True, kw_only=True)
class Annealed(Raster, tag="order.annealed", label="random to raster"):
    """Raster order in which rows are permuted with a probability that falls from one to zero (RAR, arXiv:2411.00776).

    It is one until the share ``start`` of training and zero from ``end`` on; decoding is raster.
    """

    start: float = 0.5
    end: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ConfigError(f"order.start={self.start}, end={self.end}: must be growing shares of training")

    def probability(self, progress: float) -> float:
        """Share of permuted rows when this share of training is done."""
        if progress < self.start:
            return 1.0
        return 0.0 if progress >= self.end else (self.end - progress) / (self.end - self.start)

    def plan(self, layout: TokenLayout, draws: Draws | None = None) -> Plan:
        raster = super().plan(layout)
        if draws is None:
            return raster
        chance, permuted = draws.uniform(1), draws.permutation(layout.length)
        sequence = torch.where(chance < self.probability(draws.progress), permuted, raster.sequence_BL.to(permuted.device))
        return Plan(sequence, raster.sizes)

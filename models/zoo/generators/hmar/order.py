"""Scales in several steps each.  Shapes: B rows, L positions of all scales."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws, permutations
from tokenloom.models.core.protocols import LayoutError, Likelihood, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.sizes import CosineCurve, Curve, Sizes, Steps, rule_of
from tokenloom.models.parts.plan import Choice, Plan


@dataclass(frozen=True, kw_only=True)
class SteppedScales(Order, tag="order.stepped_scales", label="scales, masked steps inside"):
    """Scales small to large, each drawn in steps; a scale attends to itself alone (HMAR, arXiv:2506.04421).

    Training predicts whole scales up to the share ``start`` of its steps, weighed by a normal density of their size; from then on it masks
    each scale of a row by itself: all of it with probability ``whole``, else the share ``curve.masked(u)``, u uniform, all that is masked
    weighing alike.  Decoding cuts each scale
    by ``decoding``, or (None) takes ``steps`` of each, the last number for all further ones; any other sizes may be asked for.  The members
    of a step are random, or those that ``choice`` finds surest among the open positions of the scale.  Groups stand at the start of
    their scale.
    """

    steps: tuple[int, ...] = (1, 2, 4)
    whole: float = 0.5
    curve: Curve = CosineCurve()
    decoding: Added[Sizes | None] = None
    choice: Added[Choice | None] = None
    start: Added[float] = 0.0

    @property
    def likelihood(self) -> Likelihood:
        return "exact" if self.choice is None else "none"

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise ConfigError(f"order.steps={list(self.steps)}: give at least one number, all at least 1")
        for name in ("whole", "start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"order.{name}={getattr(self, name)}: must be in [0, 1]")

    def requires(self, plan: Plan) -> Traits:
        return {**super().requires(plan), "known positions": Trait("yes", "order")}  # the first part of training has none yet

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        sizes = self._sizes(layout)
        whole = Plan(torch.arange(layout.length)[None], sizes, window=0)
        if draws is None:
            raise ValueError("a masked order needs draws")
        if draws.progress < self.start:
            scale_L = layout.positions[:, 1]
            return replace(whole, weight_BL=(scale_weights(sizes) / torch.tensor(sizes))[scale_L][None])
        # Shares are drawn by everyone for all rows, so that everyone knows how many positions the whole batch masks.
        chance, u = draws.host_uniform(2, draws.total, len(sizes)).tolist()
        share = [[1.0 if c < self.whole else self.curve.masked(v) for c, v in zip(*row)] for row in zip(chance, u)]
        masked = torch.tensor([[max(1, round(part * size)) for part, size in zip(row, sizes)] for row in share])
        mine = masked[draws.start : draws.stop].to(draws.device)
        known = torch.cat([draws.permutation(size) >= mine[:, s : s + 1] for s, size in enumerate(sizes)], dim=1)
        weight = (~known).float() / float(masked.sum(1).float().mean())
        return replace(whole, known_BL=known, weight_BL=weight)

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        whole, start = self._sizes(layout), 0
        cut: list[int] = []
        place: list[int] = []
        reach: list[tuple[int, int]] = []
        sequence = []
        for scale, size in enumerate(whole):
            own = self.decoding or Steps(count=self.steps[min(scale, len(self.steps) - 1)], curve=self.curve)
            rule = rule_of(own, sizes)
            cut += rule.cut(size)
            place += [start] * (len(cut) - len(place))
            reach += [(start, start + size)] * (len(cut) - len(reach))
            inside = torch.arange(size)[None] if self.choice else permutations(size, draws, f"order.{scale}")
            sequence.append(start + inside)
            start += size
        found = Plan(torch.cat(sequence, dim=1), tuple(cut), window=0, place_BG=torch.tensor([place]), choice=self.choice)
        return replace(found, reach=tuple(reach)) if self.choice else found

    def around(self, plan: Plan, keep_L: Tensor, sizes: Sizes | None = None) -> Plan:
        """What is known comes first in its scale."""
        assert plan.place_BG is not None
        stand = plan.place_BG[0].tolist()
        keep_L = keep_L.to(plan.sequence_BL.device)
        sequence, cut, place, reach = [], [], [], []
        for start in sorted(set(stand)):
            own = [size for size, at in zip(plan.sizes, stand) if at == start]
            inside, keep = plan.sequence_BL[:, start : start + sum(own)], keep_L[start : start + sum(own)]
            sequence.append(inside.gather(1, (~keep_L[inside]).long().argsort(dim=1, stable=True)))
            left = [int(keep.sum())]
            for size in own:
                left.append(min(size, sum(own) - sum(left)))
            cut += [n for n in left if n]
            place += [start] * sum(n > 0 for n in left)
            reach += [(start, start + sum(own))] * sum(n > 0 for n in left)
        found = replace(plan, sizes=tuple(cut), place_BG=torch.tensor([place]))
        if plan.choice is not None:  # what is given is found first among the positions of its scale
            return replace(found, reach=tuple(reach))
        return replace(found, sequence_BL=torch.cat(sequence, 1))

    @staticmethod
    def _sizes(layout: TokenLayout) -> tuple[int, ...]:
        if layout.frames > 1:
            raise LayoutError(f"scales in steps need one frame, not {layout.frames}")
        return layout.scale_sizes


def scale_weights(sizes: tuple[int, ...]) -> Tensor:
    """(S,) what each scale weighs: the normal density of the standardised sizes, in reverse, so that small scales count as little as
    the largest would; they sum to one."""
    size = torch.tensor(sizes, dtype=torch.float32)
    if len(sizes) < 2 or float(size.std()) == 0:
        return torch.full_like(size, 1 / len(sizes))
    density = torch.exp(-((size - size.mean()) / size.std()).square() / 2).flip(0)
    return density / density.sum()

"""Masked orders: in training a random share of the positions is known, in decoding groups of any size follow.

Shapes: B rows, L positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Likelihood, TokenLayout
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.orders.sizes import CosineCurve, Curve, Sizes, Steps, rule_of
from tokenloom.models.parts.orders.visits import Shuffled, Visit
from tokenloom.models.parts.plan import Choice, Plan, known_first

if TYPE_CHECKING:
    from tokenloom.models.parts.drawn import Drawn


@dataclass(frozen=True, kw_only=True)
class Confidence(Choice, tag="choice.confidence", label="by confidence"):
    """The likeliest tokens are kept: the drawn one's log-probability plus Gumbel noise that fades over the steps (MaskGIT, appendix).

    Noise is ``noise (1 - p) (last + span (1 - p))``, p being the share of steps done after this one.
    """

    noise: float = 4.5
    last: Added[float] = 1.0
    span: Added[float] = 0.0

    def confidence(self, drawn: Drawn, step: int, steps: int, draws: SampleDraws) -> Tensor:
        sure_BN = self.sure(drawn)
        if self.noise == 0:
            return sure_BN
        uniform = draws.uniform("confidence", step, sure_BN.shape[1])
        left = 1 - (step + 1) / steps
        return sure_BN + self.noise * left * (self.last + self.span * left) * gumbel(uniform)

    def sure(self, drawn: Drawn) -> Tensor:
        """(B, N) before the noise."""
        return drawn.log_probability_BN()


@dataclass(frozen=True, kw_only=True)
class LogitConfidence(Confidence, tag="choice.logit_confidence", label="by confidence"):
    """The same with the drawn token's logit, which is no probability but what TiTok's generators were released with."""

    def sure(self, drawn: Drawn) -> Tensor:
        return drawn.logit_BN()


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise of uniform numbers."""
    return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()


@dataclass(frozen=True, kw_only=True)
class Masked(Order, tag="order.masked"):
    """Predict what is masked from what is known (MaskGIT, arXiv:2202.04200).

    Training masks the share ``curve.masked(u)`` of each row, u uniform and drawn for each ``row`` or once a ``batch``, ``rounded`` to the
    nearest number or ``up`` (MAR); ``seen_weight`` weighs the loss at known positions.  Decoding follows ``visit`` in groups of
    ``decoding``, or takes in each step the positions that ``choice`` finds surest.
    """

    curve: Curve = CosineCurve()
    seen_weight: float = 0.0
    decoding: Sizes = Steps(count=8)
    visit: Visit = Shuffled()
    choice: Choice | None = None
    share: Added[Literal["row", "batch"]] = "row"
    rounded: Added[Literal["nearest", "up"]] = "nearest"

    def __post_init__(self) -> None:
        if not 0 <= self.seen_weight <= 1:
            raise ConfigError(f"order.seen_weight={self.seen_weight}: must be in [0, 1]")

    @property
    def likelihood(self) -> Likelihood:
        return "exact" if self.choice is None else "none"

    @property
    def label(self) -> str:
        return f"{self.words}, {self.visit.label if self.choice is None else self.choice.label}"

    def plan(self, layout: TokenLayout, draws: Draws | None) -> Plan:
        if draws is None:
            raise ValueError("a masked order needs draws")
        whole = math.ceil if self.rounded == "up" else round
        # The ratios of all rows are drawn by everyone, so that everyone knows how many positions the whole batch masks.
        ratio = draws.host_uniform(draws.total if self.share == "row" else 1).expand(draws.total)
        masked = torch.tensor([max(1, whole(self.curve.masked(u) * layout.length)) for u in ratio.tolist()])
        mine = masked[draws.start : draws.stop].to(draws.device)
        known_BL = draws.permutation(layout.length) >= mine[:, None]
        return self.of_mask(known_BL, float((masked + self.seen_weight * (layout.length - masked)).float().mean()))

    def of_mask(self, known_BL: Tensor, weight: float) -> Plan:
        """The plan that predicts all positions at once from the known ones; ``weight`` is the loss weight of a mean row."""
        length = known_BL.shape[1]
        sequence = torch.arange(length, device=known_BL.device)[None]
        weight_BL = torch.where(known_BL, self.seen_weight / weight, 1 / weight)
        return Plan(sequence, (length,), known_BL=known_BL, weight_BL=weight_BL)

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        sequence = torch.arange(layout.length)[None] if self.choice else self.visit.sequence(layout, rows, draws)
        return Plan(sequence, rule_of(self.decoding, sizes).cut(layout.length), choice=self.choice)

    def around(self, plan: Plan, keep_L: Tensor, sizes: Sizes | None = None) -> Plan:
        cut = known_first(plan, keep_L, rule_of(self.decoding, sizes))
        return cut if plan.choice is None else replace(cut, sequence_BL=plan.sequence_BL)

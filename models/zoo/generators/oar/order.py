"""An order that the model finds while it draws.  Shapes: B rows, L positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Likelihood, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.orders.masked import Confidence
from tokenloom.models.parts.orders.random import Random
from tokenloom.models.parts.orders.sizes import Sizes, rule_of
from tokenloom.models.parts.plan import Choice, Plan


@dataclass(frozen=True, kw_only=True)
class ConfidenceOrder(Random, tag="order.found"):
    """Training in random orders; decoding takes in each step the positions of which ``choice`` is surest (OAR, arXiv:2504.17069)."""

    choice: Choice = Confidence(noise=0.0)

    def traits(self, plan: Plan) -> Traits:
        return {"orders that the model finds": Trait("yes", "order")}

    @property
    def likelihood(self) -> Likelihood:
        return "none"

    @property
    def label(self) -> str:
        return f"random, then {self.choice.label}"

    def decode(self, layout: TokenLayout, rows: int, draws: SampleDraws | None = None, sizes: Sizes | None = None) -> Plan:
        return Plan(torch.arange(layout.length)[None], rule_of(self.decoding, sizes).cut(layout.length), choice=self.choice)

    def around(self, plan: Plan, keep_L: Tensor, sizes: Sizes | None = None) -> Plan:
        return replace(super().around(plan, keep_L, sizes), sequence_BL=plan.sequence_BL)

"""Position queries: what is known and what is predicted are slots of two kinds.

Shapes: B rows, L positions, S slots, P prefix slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed, nowhere, prefix_groups, span, take
from tokenloom.models.parts.feeds.shifted import Shifted
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots


class Queried(Shifted):
    """Content slots hold the tokens so far, query slots one learned vector at each place that is predicted (ARPG, arXiv:2503.10568).

    Tokens of a group attend to each other and all earlier ones; queries are for nets that let them look at the content alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.position_queries"):
        """As ``Shifted``."""

    window = Feed.window  # queries are slots of their own

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.query = nn.Parameter(torch.empty(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)

    def traits(self, plan: Plan) -> Traits:
        return {"query slots": Trait("of the content alone", "feed")}

    def check(self, plan: Plan) -> None:
        """Any plan will do."""

    def slots(self, plan: Plan, prefix: int) -> int:
        return prefix + plan.start(plan.groups - 1)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        content = plan.sequence_BL[:, : plan.start(plan.groups - 1)]
        token = self.drop(torch.cat([cond.prefix_BPD, self.table(take(data, content))], dim=1), draws)
        first, group = prefix_groups(cond.prefix_BPD), plan.group_L[None]
        held = group[:, : content.shape[1]] + 1
        stand = nowhere(first).expand(len(content), -1)
        return self._of(token, torch.cat([first, held], dim=1), torch.cat([stand, content], dim=1), plan.sequence_BL, group)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        target = plan.members(group)
        if group == 0:
            token, held = cond.prefix_BPD, prefix_groups(cond.prefix_BPD)
            stand = nowhere(held).expand(len(target), -1)
        else:
            token, stand = self.table(state), plan.members(group - 1)
            held = torch.full_like(stand[:1], group)
        return self._of(token, held, stand, target, torch.full_like(target[:1], group))

    def _of(self, token: Tensor, held_1S: Tensor, stand: Tensor, target: Tensor, group_1N: Tensor) -> Slots:
        content, count = token.shape[1], target.shape[1]
        return Slots(
            torch.cat([token, self.query.expand(len(token), count, -1)], dim=1),
            torch.cat([held_1S, group_1N], dim=1),
            torch.cat([stand, target], dim=1),
            span(content, content + count, token.device),
            queries=count,
            cached=content,
        )

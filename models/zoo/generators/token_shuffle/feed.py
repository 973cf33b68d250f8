"""Tokens merged on channels: fewer slots for the same tokens.

Shapes: B rows, L positions, G groups, m tokens of a group, S slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.feeds.base import Feed, nowhere, prefix_groups, span, take
from tokenloom.models.parts.feeds.shifted import Shifted
from tokenloom.models.parts.mlp import MLP, ResidualMLP, SwiGLU
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything


class Merged(Shifted):
    """Each group is given the tokens of the group before it as one slot (Token-Shuffle, arXiv:2504.17789, section 3.2).

    Every token is mapped to 1/m of the width, those of a group are laid side by side on the channels, and a few residual MLPs fuse them.
    The net gives back m states a slot (``nets.shuffle``), one for each token of the next group.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Shifted.Config, tag="feed.merged", label="tokens merged on channels"):
        """``share``: tokens of a group; ``blocks`` residual MLPs."""

        share: int = 4
        blocks: int = 2
        mlp: MLP.Config = SwiGLU.Config()

    window = Feed.window  # a slot holds several tokens

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.share = config.share
        if width % self.share:
            raise LayoutError(f"feed.share={self.share} does not divide the width {width}")
        self.down = nn.Linear(width, width // self.share, bias=False)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        self.fuse = ResidualMLP(config.mlp, width, config.blocks)

    def slots(self, plan: Plan, prefix: int) -> int:
        return prefix + plan.groups

    def traits(self, plan: Plan) -> Traits:
        return {**super().traits(plan), "tokens that a slot is taken apart into": Trait(self.share, "feed.share")}

    def check(self, plan: Plan) -> None:
        if set(plan.sizes) != {self.share}:
            raise LayoutError(f"feed.share={self.share}: needs groups of as many positions, not {plan.sizes}")

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        self.check(plan)
        token = self._merge(take(data, plan.sequence_BL[:, : -self.share]))
        x = self.drop(torch.cat([cond.prefix_BPD, token], dim=1), draws)
        first = prefix_groups(cond.prefix_BPD)
        stand = self._stand(plan)[:, :-1]
        place = torch.cat([nowhere(first).expand(len(stand), -1), stand], dim=1)
        group = torch.cat([first, span(1, plan.groups, x.device)], dim=1)
        start = (first.shape[1] - 1) * self.share
        return Slots(x, group, place, span(start, start + sum(plan.sizes), x.device), visibility=Causal())

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        if group == 0:
            slots = super().step(state, plan, cond, 0)
            last = slots.x_BSD.shape[1] * self.share
            return replace(slots, output_index=span(last - self.share, last, slots.x_BSD.device))
        place = self._stand(plan)[:, group - 1 : group]
        return Slots(self._merge(state), torch.full_like(place, group), place, span(0, self.share, place.device), visibility=Everything())

    def _merge(self, ids: Tensor) -> Tensor:
        """Ids of whole groups (B, G m) to slots (B, G, D)."""
        token = self.table(ids)
        return self.fuse(self.down(token).unflatten(1, (-1, self.share)).flatten(2))

    def _stand(self, plan: Plan) -> Tensor:
        return plan.sequence_BL[:, :: self.share] if plan.place_BG is None else plan.place_BG

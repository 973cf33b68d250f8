"""Masked feeds: every position is a slot, which holds its token or [MASK]; every slot attends to all others.

Shapes: B rows, L positions, S slots, P prefix slots, D width, Q codebooks.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import dropout
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.feeds.embedding import embedding
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything


class Whole(Feed):
    """Feeds without a cache: each step is given all slots anew, from what is known so far."""

    passes: ClassVar[Literal["cached", "whole"]] = "whole"
    layout: TokenLayout

    @abstractmethod
    def of_known(self, data: Tensor, known_BL: Tensor, target_BN: Tensor, cond: Conditioned, draws: Draws | None) -> Slots:
        """All slots for tokens of which some are known; ``target_BN`` (B or 1, N) are the positions to predict."""

    def traits(self, plan: Plan) -> Traits:
        return {"known positions": Trait("yes", "feed"), "predictions of all open positions": Trait("yes", "feed")}

    def slots(self, plan: Plan, prefix: int) -> int:
        return 0

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        known = torch.zeros(data.shape[:2], dtype=torch.bool, device=data.device) if plan.known_BL is None else plan.known_BL
        return self.of_known(data, known.expand(data.shape[:2]), plan.sequence_BL, cond, draws)

    def start(self, plan: Plan, cond: Conditioned) -> tuple[Tensor, Tensor]:
        layout, rows, device = self.layout, len(cond.vector_BD), cond.vector_BD.device
        if layout.discrete:
            deep = (layout.codebooks,) if layout.codebooks > 1 else ()
            data = torch.zeros((rows, layout.length, *deep), dtype=torch.long, device=device)
        else:
            data = torch.zeros((rows, layout.length, layout.channels), dtype=cond.vector_BD.dtype, device=device)
        return data, torch.zeros(data.shape[:2], dtype=torch.bool, device=device)

    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        return self.of_known(state[0], state[1], plan.candidates(group), cond, None)

    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> tuple[Tensor, Tensor]:
        index = place_Bn.expand(len(data), -1)
        deep = index.view(*index.shape, *[1] * (data.ndim - 2)).expand_as(data)
        return state[0].scatter(1, deep, data), state[1].scatter(1, index, True)


class MaskToken(Whole):
    """Tokens and [MASK] with learned positions (MaskGIT, arXiv:2202.04200); there is no cache, each step is given all slots anew."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Feed.Config, tag="feed.mask_token", label="tokens and [MASK]"):
        """``prefix``: whether the condition's slots lead the sequence, at positions of their own; ``registers``: learned slots
        at its end."""

        prefix: int = 0
        registers: int = 0
        dropout: float = 0.0
        init_std: float = 0.02

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        self.layout, self.prefix, self.rate = layout, config.prefix, config.dropout
        self.table = embedding(layout, width, spare=1, std=config.init_std)  # the spare vector is [MASK]
        self.position = nn.Parameter(torch.empty(1, config.prefix + layout.length, width))
        nn.init.trunc_normal_(self.position, std=config.init_std)
        self.register: nn.Parameter | None = None
        if config.registers:
            self.register = nn.Parameter(torch.empty(1, config.registers, width))
            nn.init.trunc_normal_(self.register, std=config.init_std)

    def requires(self, plan: Plan) -> Traits:
        return {"prefix slots": Trait(self.prefix, "feed.prefix")} if self.prefix else {}

    def embed(self, x_BSD: Tensor) -> Tensor:
        """The slots at their positions."""
        return x_BSD + self.position

    def of_known(self, data: Tensor, known_BL: Tensor, target_BN: Tensor, cond: Conditioned, draws: Draws | None) -> Slots:
        x = self.table.masked(data, known_BL)
        if self.prefix:
            x = torch.cat([cond.prefix_BPD, x], dim=1)
        x = dropout(self.embed(x), self.rate, draws)
        if self.register is not None:
            x = torch.cat([x, self.register.expand(len(x), -1, -1)], dim=1)
        place = torch.full((1, x.shape[1]), -1, device=x.device)
        place[:, self.prefix : self.prefix + self.layout.length] = torch.arange(self.layout.length, device=x.device)
        return Slots(x, torch.zeros_like(place), place, target_BN + self.prefix, visibility=Everything(), cached=0)

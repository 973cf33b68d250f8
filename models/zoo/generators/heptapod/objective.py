"""All positions to come, at every step of a causal generator.

Shapes: B rows, L positions, N pairs of a step and a later position, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError, stored_as_one
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, full_tokens_of
from tokenloom.models.objectives.base import GroupModel, Objective
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.plan import Plan
from tokenloom.models.zoo.generators.heptapod.net import QueryHeads


class WholeGrid(Objective):
    """Next-token prediction in raster order that predicts every later token too (Heptapod, arXiv:2510.06673).

    Samples and likelihoods of the model are those of next-token prediction.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config, tag="objective.whole_grid"):
        """``later`` weighs the loss of positions after the next, the mean over steps of each one's mean over its later positions, of
        which ``targets`` are drawn (0: all are taken).
        """

        later: float = 1.0
        targets: int = 0

        def __post_init__(self) -> None:
            if self.later <= 0 or self.targets < 0:
                raise ConfigError(f"later={self.later}, targets={self.targets}: later must be positive, targets at least 0")

    def __init__(self, config: Config) -> None:
        self.config = config

    def requires(self, plan: Plan) -> Traits:
        names = "positions in storage order", "states with queries of positions"
        return dict.fromkeys(names, Trait("yes", "objective"))

    def losses(self, model: GroupModel, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: nats a token of the next one (``next``) plus, weighted, of all later ones (``later``)."""
        assert batch.tokens is not None
        model.layout.check(batch.tokens.layout)
        data, given = full_tokens_of(batch.tokens), draws if model.training else None
        step_N, place_N = (t.to(data.device) for t in self.pairs(model.layout.length, draws))
        plan = model.order.plan(model.layout, None).to(data.device)
        cond, net = model.condition(model.condition.drop(batch.conditions, given)), cast(QueryHeads, model.net)
        h_BLD = model.parallel(data, plan, cond, given, net.trunk)
        nll_BN = model.head.loss(net.point(h_BLD[:, step_N], place_N), data[:, place_N], draws)
        following = step_N == place_N
        # Where all are taken, early steps have more of them than late ones, and shall not count for more.
        ahead_N = (model.layout.length - 1 - step_N[~following]).to(nll_BN.dtype)
        weight_N = 1 / ahead_N if self.config.targets == 0 else torch.ones_like(ahead_N)
        first, later = nll_BN[:, following].mean(), (nll_BN[:, ~following] @ (weight_N / weight_N.sum())).mean()
        return {"loss": first + self.config.later * later, "next": first.detach(), "later": later.detach()}

    def pairs(self, length: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Steps and positions (N,): each step with its next position and with later ones, the same for all rows."""
        targets, step = self.config.targets, torch.arange(length)
        if not targets:
            each = torch.triu_indices(length, length)
            return each[0], each[1]
        first = step[:-1].repeat_interleave(targets)
        ahead = (draws.host_uniform(len(first)) * (length - 1 - first)).long()
        return torch.cat([step, first]), torch.cat([step, (first + 1 + ahead).clamp_max(length - 1)])


stored_as_one("model.whole_grid", "model.groups", "objective", "objective.whole_grid")

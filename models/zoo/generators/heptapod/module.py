"""A causal generator that predicts all positions to come at every step.

Shapes: B rows, L positions, N pairs of a step and a later position, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator, read, tokens_of
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.orders import Raster
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.zoo.generators.heptapod.net import Pointed


class WholeGrid(GroupGenerator):
    """Next-token prediction in raster order, trained to predict every later token too (Heptapod, arXiv:2510.06673).

    Samples and likelihoods are those of next-token prediction.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.whole_grid"):
        """``later`` weighs the loss of positions after the next, the mean over steps of each one's mean over its later positions, of
        which ``targets`` are drawn (0: all are taken).
        """

        later: float = 1.0
        targets: int = 0

        def __post_init__(self) -> None:
            if self.later <= 0 or self.targets < 0:
                raise ConfigError(f"later={self.later}, targets={self.targets}: later must be positive, targets at least 0")
            if not isinstance(self.order, Raster) or not isinstance(self.net, Pointed.Config):
                raise ConfigError("order, net: predicting the whole grid needs Raster and Pointed")

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> WholeGrid:
            return WholeGrid(self, layout, classes, tokenizer)

    config: Config

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: nats a token of the next one (``next``) plus, weighted, of all later ones (``later``)."""
        assert batch.tokens is not None
        assert batch.condition is not None
        self.layout.check(batch.tokens.layout)
        ids, given = tokens_of(batch.tokens), draws if self.training else None
        step_N, place_N = (t.to(ids.device) for t in self.pairs(draws))
        plan = self.order.plan(self.layout, None).to(ids.device)
        cond = self.condition(self.condition.drop(batch.condition, given))
        slots, net = self.feed.parallel(ids, plan, cond, given), cast(Pointed, self.net)
        h_BLD = read(net.trunk(slots, visibility_of(slots, plan.window, cond.seen_BP), cond, draws=given), slots.output_index)
        logits = cast(Categorical, self.head).logits(net.point(h_BLD[:, step_N], place_N))
        nll_BN = F.cross_entropy(logits.transpose(1, 2), ids[:, place_N], reduction="none")
        following = step_N == place_N
        # Where all are taken, early steps have more of them than late ones, and shall not count for more.
        ahead_N = (self.layout.length - 1 - step_N[~following]).to(nll_BN.dtype)
        weight_N = 1 / ahead_N if self.config.targets == 0 else torch.ones_like(ahead_N)
        first, later = nll_BN[:, following].mean(), (nll_BN[:, ~following] @ (weight_N / weight_N.sum())).mean()
        return {"loss": first + self.config.later * later, "next": first.detach(), "later": later.detach()}

    def pairs(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Steps and positions (N,): each step with its next position and with later ones, the same for all rows."""
        length, targets = self.layout.length, self.config.targets
        step = torch.arange(length)
        if not targets:
            each = torch.triu_indices(length, length)
            return each[0], each[1]
        first = step[:-1].repeat_interleave(targets)
        ahead = (draws.shared_uniform(len(first)).cpu() * (length - 1 - first)).long()
        return torch.cat([step, first]), torch.cat([step, (first + 1 + ahead).clamp_max(length - 1)])

"""Sampling many tokens at once from a model of all orders, exact by rejection.

Shapes: B rows, L positions (and entries of a sequence of them), V vocabulary, O candidate orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Condition, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator, read, rows_of, tokens_of
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.feeds.doubled import Doubled
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.plan import Plan, known_first
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.sampling.filters import inverse, keep_top_k, keep_top_p
from tokenloom.models.sampling.sampler import Moment, Sampler


@dataclass(frozen=True, kw_only=True)
class Burst(config.Config, tag="decoder.rejection"):
    """All open positions are drawn at once, and those kept that the model agrees with one after another (sigma-GPT, section 3.3).

    ``orders`` are tried and the one that keeps most wins.  With one order samples are distributed exactly as those of one-by-one
    decoding; choosing among several favours what is easily agreed with.
    """

    orders: int = 1

    def __post_init__(self) -> None:
        if self.orders < 1:
            raise ConfigError(f"burst.orders={self.orders}: must be at least 1")


@dataclass(frozen=True)
class Bursted:
    """After a burst: the tokens (B, L), of which the first ``known_B`` of ``sequence_BL`` stand."""

    data: Tensor
    sequence_BL: Tensor
    known_B: Tensor


class AnyOrder(GroupGenerator):
    """A generator over double positions that may be sampled in bursts."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.any_order"):
        """``burst``: None decodes group after group."""

        burst: Burst | None = None

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> AnyOrder:
            return AnyOrder(self, layout, classes, tokenizer)

    config: Config
    feed: Doubled
    head: Categorical

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse a number of steps where bursts decide it."""
        if self.config.burst is not None and sampler.sizes is not None:
            raise ConfigError("sample.steps: bursts take as many steps as they need; leave it out, or build without burst")
        super().check_sampler(sampler)

    @torch.no_grad()
    def generate(self, condition: Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        if self.config.burst is None:
            return super().generate(condition, sampler, draws)
        return Tokens(self._last(self.bursts(condition, sampler, draws, self.config.burst)), self.layout)

    @torch.no_grad()
    def inpaint(self, tokens: Tokens, keep_L: Tensor, condition: Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        if self.config.burst is None:
            return super().inpaint(tokens, keep_L, condition, sampler, draws)
        self.layout.check(tokens.layout)
        steps = self.bursts(condition, sampler, draws, self.config.burst, tokens_of(tokens), keep_L)
        return Tokens(self._last(steps), self.layout)

    @torch.no_grad()
    def bursts(
        self,
        condition: Condition,
        sampler: Sampler,
        draws: SampleDraws,
        burst: Burst,
        given: Tensor | None = None,
        keep_L: Tensor | None = None,
    ) -> Iterator[Bursted]:
        """Sample in bursts of ``1 + orders`` passes each, yielding after each; at least two more tokens stand then, or all.

        Schedules of the sampler go by the number of tokens that stand in each row.
        """
        rows, length, device = rows_of(condition), self.layout.length, next(self.parameters()).device
        draws = draws.to(device, rows)
        plan = self.order.decode(self.layout, rows, draws)
        known_B = torch.zeros(rows, dtype=torch.int64, device=device)
        data = torch.zeros((rows, length), dtype=torch.int64, device=device) if given is None else given.clone()
        if keep_L is not None:
            plan = known_first(plan, keep_L)
            known_B += int(keep_L.sum())
        sequence_BL = plan.sequence_BL.to(device).expand(rows, -1)
        entry = torch.arange(length, device=device)
        for step in range(length):  # each one leaves at least one more standing
            if int(known_B.min()) == length:
                return
            p_BLV = self._asked(data, sequence_BL, known_B, condition, sampler)
            open_BL = entry >= known_B[:, None]
            ids_BL = inverse(p_BLV.log(), draws.uniform("burst", step, length))
            drawn_BL = torch.where(open_BL, ids_BL, take(data, sequence_BL))
            best: tuple[Tensor, Tensor, Tensor] | None = None
            for trial in range(burst.orders):
                index = torch.arange(length, device=device).expand(rows, -1)
                if trial:  # other orders of what is open
                    noise_BL = draws.uniform(f"order.{trial}", step, length)
                    index = torch.where(open_BL, noise_BL, entry - length).argsort(1)
                order_BL = take(sequence_BL, index)
                drawn, p = take(drawn_BL, index), take(p_BLV, index)
                chance_B2L = draws.uniform(f"verify.{trial}", step, 2, length)
                tried = self._verified(data, order_BL, drawn, p, known_B, condition, sampler, chance_B2L)
                if best is None:
                    best = tried
                else:
                    longer = tried[2] > best[2]
                    sequence, values = (torch.where(longer[:, None], a, b) for a, b in zip(tried[:2], best[:2]))
                    best = sequence, values, torch.maximum(tried[2], best[2])
            assert best is not None
            sequence_BL, values_BL, known_B = best
            data = data.scatter(1, sequence_BL, values_BL)
            yield Bursted(data, sequence_BL, known_B)

    def _verified(
        self,
        data: Tensor,
        sequence_BL: Tensor,
        drawn_BL: Tensor,
        p_BLV: Tensor,
        known_B: Tensor,
        condition: Condition,
        sampler: Sampler,
        chance_B2L: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sequence, its tokens (B, L), and how many of them stand.

        A token drawn from p stands with probability min(1, q / p), q knowing all tokens before it; the first that does not is drawn
        from what q has more than p (arXiv:2211.17192, algorithm 1).  ``chance_B2L`` are uniform numbers, of which the second draws.
        """
        length = sequence_BL.shape[1]
        filled = data.scatter(1, sequence_BL, drawn_BL)
        chain = Plan(sequence_BL, (1,) * length)
        q_BLV = self._probabilities(lambda asked: self(filled, asked, chain), condition, sampler, known_B)
        ratio_BL = (q_BLV / p_BLV.clamp_min(1e-30)).gather(-1, drawn_BL.unsqueeze(-1)).squeeze(-1)
        entry = torch.arange(length, device=data.device)
        # The first open token has q = p.
        stands = (entry <= known_B[:, None]) | (chance_B2L[:, 0] <= ratio_BL)
        run_B = stands.long().cumprod(1).sum(1)
        at = run_B.clamp_max(length - 1)[:, None]
        lacking = (take(q_BLV, at) - take(p_BLV, at)).clamp_min(0)
        lacking = torch.where(lacking.sum(-1, keepdim=True) > 1e-9, lacking, take(q_BLV, at))
        other = inverse(lacking.log(), chance_B2L[:, 1, :1])
        values = torch.where((run_B < length)[:, None] & (entry == at), other, drawn_BL)
        return sequence_BL, values, (run_B + 1).clamp_max(length)

    def _asked(self, data: Tensor, sequence_BL: Tensor, known_B: Tensor, condition: Condition, sampler: Sampler) -> Tensor:
        """(B, L, V) probabilities of all entries when the first ``known_B`` are known; those of known entries mean nothing."""
        known_BL = known_B.clamp_max(sequence_BL.shape[1] - 1)[:, None].expand_as(sequence_BL)

        def hidden(asked: Condition) -> Tensor:
            cond = self.condition(asked)
            slots = self.feed.asked(data, sequence_BL, known_BL, cond)
            visibility = visibility_of(slots, None, cond.seen_BP)
            return read(self.net(slots, visibility, cond), slots.output_index)

        return self._probabilities(hidden, condition, sampler, known_B)

    def _probabilities(self, hidden: Any, condition: Condition, sampler: Sampler, known_B: Tensor) -> Tensor:
        """What a sampler draws from: guided, at its temperature, filtered; each row by its own number of known tokens."""
        length = self.layout.length
        moments = [Moment(k, length, k, k + 1, length) for k in range(length)]
        now_B = known_B.clamp_max(length - 1)
        weights, heats = ([schedule.on(moment) for moment in moments] for schedule in (sampler.guidance, sampler.temperature))
        weight_B11 = torch.tensor(weights, device=known_B.device)[now_B, None, None]
        heat_B11 = torch.tensor(heats, device=known_B.device)[now_B, None, None].clamp_min(1e-6)
        null = self.head.logits(hidden(self.condition.null(condition))) if any(weights) else None
        logits = guide(self.head.logits(hidden(condition)), null, weight_B11) / heat_B11
        return keep_top_p(keep_top_k(logits, sampler.top_k), sampler.top_p).softmax(-1)

    @staticmethod
    def _last(steps: Iterator[Bursted]) -> Tensor:
        data: Tensor | None = None
        for step in steps:
            data = step.data
        return cast(Tensor, data)

"""Rejection sampling over a model of all orders: many tokens at once, as one by one decoding draws them.

Shapes: B rows, L positions (and entries of a sequence of them), V vocabulary.  Under guidance the net has 2 B rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.feeds.double_position import DoublePosition
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.orders.sizes import Even
from tokenloom.models.parts.plan import Plan, known_first
from tokenloom.models.parts.slots import Slots
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.filters import inverse, keep
from tokenloom.models.sampling.rejection import leading
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.sampling.session import Decodable, DecodingSession
from tokenloom.models.sampling.trace import Trace


@dataclass(frozen=True)
class Settled:
    """Tokens (B, L), of which the first ``known_B`` entries of ``sequence_BL`` are decided."""

    data: Tensor
    sequence_BL: Tensor
    known_B: Tensor


@dataclass(frozen=True, kw_only=True)
class Rejection(Decoder, tag="decoder.rejection"):
    """All open positions are drawn at once; the longest beginning is kept that the model, one token after another, agrees with
    (sigma-GPT, arXiv:2404.09562, section 3.3).

    ``orders`` of the open positions are tried and the one that keeps most wins.  With one order samples are distributed exactly as those
    of one by one decoding; choosing among several favours tokens that are easily agreed with.
    """

    paper: ClassVar = "2404.09562"
    exact: ClassVar = False  # with several orders
    needs: ClassVar[tuple[str, ...]] = ("queries of any position", "one softmax a token")

    orders: int = 1

    def __post_init__(self) -> None:
        if self.orders < 1:
            raise ConfigError(f"decoder.orders={self.orders}: must be at least 1")

    def refusal(self, model: Decodable, sampler: Sampler) -> str | None:
        if not isinstance(model.feed, DoublePosition):
            return f"the feed {type(model.feed).__qualname__} cannot predict all open positions from the same known ones"
        if not isinstance(model.head, Categorical) or type(model.head).draw is not Categorical.draw:
            return f"the head {type(model.head).__qualname__} does not draw each token from one softmax"
        return None if sampler.sizes is None else "it takes as many steps as it needs; leave sample.steps out"

    def run(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = RejectionSession(model, conditions, sampler, draws, **given)
        for _ in self.steps(session):
            pass
        return session.tokens(), session.trace

    def steps(self, session: RejectionSession) -> Iterator[Settled]:
        """``1 + orders`` calls of the net each; at least two more tokens are decided then, or all."""
        for step in range(session.model.layout.length):
            if session.done:
                return
            drawn_BL, draft_BLV = session.propose(step)
            best = session.verify(session.now, drawn_BL, draft_BLV, step, 0)
            for trial in range(1, self.orders):
                index = session.shuffled(step, trial)
                order = Settled(session.now.data, take(session.now.sequence_BL, index), session.now.known_B)
                tried = session.verify(order, take(drawn_BL, index), take(draft_BLV, index), step, trial)
                longer = (tried.known_B > best.known_B)[:, None]
                data, sequence = torch.where(longer, tried.data, best.data), torch.where(longer, tried.sequence_BL, best.sequence_BL)
                best = Settled(data, sequence, torch.maximum(tried.known_B, best.known_B))
            yield session.commit(best)


class RejectionSession(DecodingSession):
    """Each row decides its sequence from the front, whose order may change where it is open; there is no cache.

    Schedules of the sampler go by the number of decided tokens of each row.
    """

    @torch.no_grad()
    def __init__(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> None:
        super().__init__(model, conditions, sampler, draws, **given)
        if self.stop is not None:
            raise ValueError(f"stop={self.stop}: rows end early only where tokens are decided one after another, not by rejection sampling")
        length, rows, device = model.layout.length, self.rows, self.device
        plan, known_B = self.plan, torch.zeros(rows, dtype=torch.int64, device=device)
        data = torch.zeros((rows, length), dtype=torch.int64, device=device) if self.given is None else self.given.clone()
        if self.keep_L is not None:
            plan = known_first(plan, self.keep_L, Even())
            known_B += self.keep_L.sum()
        self.now = Settled(data, plan.sequence_BL.expand(rows, -1), known_B)
        self.entry_L = torch.arange(length, device=device)
        each = [Moment(k, length, k, k + 1, length) for k in range(length)]
        self.weight_L, self.temperature_L = (
            torch.tensor([schedule.on(moment) for moment in each], device=device) for schedule in (sampler.guidance, sampler.temperature)
        )

    def _allocate(self) -> None:
        self.cache = None

    @property
    def done(self) -> bool:
        """Whether all tokens are decided; this waits for the device."""
        return bool((self.now.known_B == self.model.layout.length).all())

    @property
    def open_BL(self) -> Tensor:
        """True at entries that are not decided."""
        return self.entry_L >= self.now.known_B[:, None]

    @torch.no_grad()
    def propose(self, step: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """All open entries drawn at once, each from what is decided alone: tokens (B, L) and their distributions (B, L, V)."""
        feed, now = cast(DoublePosition, self.model.feed), self.now
        known_BL = now.known_B.clamp_max(len(self.entry_L) - 1)[:, None].expand_as(now.sequence_BL)
        data, sequence, known = (self._twice(t) for t in (now.data, now.sequence_BL, known_BL))
        p_BLV = self._probabilities(feed.queried(data, sequence, known, self.cond))
        ids_BL = inverse(p_BLV.log(), self.draws.uniform("burst", step, len(self.entry_L)))
        return torch.where(self.open_BL, ids_BL, take(now.data, now.sequence_BL)), p_BLV

    def shuffled(self, step: int, trial: int) -> Tensor:
        """(B, L) indices of the entries in another order of what is open."""
        noise_BL = self.draws.uniform(f"order.{trial}", step, len(self.entry_L))
        return torch.where(self.open_BL, noise_BL, self.entry_L - len(self.entry_L)).argsort(1)

    @torch.no_grad()
    def verify(  # type: ignore[override]
        self, order: Settled, drawn_BL: Tensor, draft_BLV: Tensor, step: int, trial: int
    ) -> Settled:
        """What of a draft holds in this order, and one more token (arXiv:2211.17192, algorithm 1).

        A token drawn from p holds with probability min(1, q / p), where q knows all tokens before it; the first that does not is drawn
        from what q has more than p.
        """
        length = len(self.entry_L)
        filled = order.data.scatter(1, order.sequence_BL, drawn_BL)
        chain = Plan(self._twice(order.sequence_BL), (1,) * length)
        q_BLV = self._probabilities(self.model.feed.parallel(self._twice(filled), chain, self.cond, None))
        chance_B2L = self.draws.uniform(f"verify.{trial}", step, 2, length)
        ratio_BL = (q_BLV / draft_BLV.clamp_min(1e-30)).gather(-1, drawn_BL.unsqueeze(-1)).squeeze(-1)
        # The first open token has q = p.
        hold_B = leading((self.entry_L <= order.known_B[:, None]) | (chance_B2L[:, 0] <= ratio_BL))
        at = hold_B.clamp_max(length - 1)[:, None]
        lacking = (take(q_BLV, at) - take(draft_BLV, at)).clamp_min(0)
        lacking = torch.where(lacking.sum(-1, keepdim=True) > 1e-9, lacking, take(q_BLV, at))
        other = inverse(lacking.log(), chance_B2L[:, 1, :1])
        values = torch.where((hold_B < length)[:, None] & (self.entry_L == at), other, drawn_BL)
        return Settled(order.data.scatter(1, order.sequence_BL, values), order.sequence_BL, (hold_B + 1).clamp_max(length))

    def commit(self, best: Settled) -> Settled:  # type: ignore[override]
        """Make what holds permanent."""
        self.trace.step(best.known_B - self.now.known_B)
        self.now = best
        return best

    def tokens(self) -> Tokens:
        return Tokens(self.now.data, self.model.layout)

    def _twice(self, data: Tensor) -> Tensor:
        return data.repeat(2, *[1] * (data.ndim - 1)) if self.guided else data

    def _probabilities(self, slots: Slots) -> Tensor:
        """(B, L, V) what a sampler draws from: guided, at its temperature, filtered."""
        self.trace.call(slots.x_BSD.shape[1])
        logits = cast(Categorical, self.model.head).logits(
            self.model.read(self.model.net(slots, self._visibility(slots), self.cond), slots)
        )
        now_B = self.now.known_B.clamp_max(len(self.entry_L) - 1)
        weight_B11, temperature_B11 = (table[now_B, None, None] for table in (self.weight_L, self.temperature_L))
        if self.guided:
            logits = guide(logits[: self.rows], logits[self.rows :], weight_B11)
        logits = logits / temperature_B11.clamp_min(1e-6)
        return keep(logits, self.sampler.top_k, self.sampler.top_p).softmax(-1)

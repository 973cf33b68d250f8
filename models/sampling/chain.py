"""A session in which each row stands at its own entry of the sequence: several drafted tokens are verified by one call of the net.

Shapes: B rows, L entries of the sequence, n drafted tokens of a call, W of a window, T slots of the cache, V vocabulary.  Under guidance
the net has R = 2 B rows: conditional ones, then null ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.sequence import State
from tokenloom.models.parts.visibility import Causal, Mask
from tokenloom.models.sampling.filters import keep
from tokenloom.models.sampling.fixed import unpadded
from tokenloom.models.sampling.rejection import acceptable, draw_from, leading, residual
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable, DecodingSession


def refusal(model: Decodable, sampler: Sampler) -> str | None:
    """Why rows of this generator cannot stand at entries of their own; None where they can."""
    if type(model.feed).window is Feed.window:
        return f"the feed {type(model.feed).__qualname__} has no window of drafted tokens"
    if model.net.keeps == "other":
        return f"the cache of the net {type(model.net).__qualname__} cannot go back to where each row stands"
    if not isinstance(model.head, Categorical) or type(model.head).draw is not Categorical.draw:
        return f"the head {type(model.head).__qualname__} does not draw each token from one softmax, which rejection sampling needs"
    plan = model.order.decode(replace(model.layout), 1, SampleDraws.of(0, 0, 1), sampler.sizes)
    if plan.choice is not None or set(plan.sizes) != {1}:
        return f"the order {type(model.order).__qualname__} does not decode one position after another"
    return None


class Relaxation(Protocol):
    """Another rule of what holds (``sampling.decoders.relaxed``)."""

    def holds(self, target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor: ...

    def rest(self, target_B1V: Tensor, draft_B1V: Tensor, token_B1: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Outcome:
    """A verified window: probabilities (B, W + 1, V) of the entries from the first drafted one on, ``hold_B`` drafts that hold, counted
    from the first on, and the new tokens (B, W + 1): those, then one more that is drawn; what follows means nothing."""

    target: Tensor
    hold_B: Tensor
    token: Tensor


@dataclass(frozen=True)
class ChainMark:
    """A point to go back to."""

    token_BM: Tensor
    done_B: Tensor
    ended_B: Tensor
    recurrent: tuple[State, ...]


class ChainSession(DecodingSession):
    """Tokens one after another, any number of which are drafted and verified at once.

    ``run`` takes tokens on trial; ``commit`` and ``rollback`` settle them: caches of attention are truncated and recurrent states go back
    to a snapshot, for each row by itself.  Shapes are fixed: ended rows take part and change nothing.
    """

    @torch.no_grad()
    def __init__(
        self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, *, window: int, **given: Any
    ) -> None:
        """Open, and run the prefix; up to ``window`` tokens will be drafted at once."""
        self.window = window
        super().__init__(model, conditions, sampler, draws, **given)
        length, device = model.layout.length, self.device
        self.sequence_BL = self.plan.sequence_BL.expand(self.rows, -1)
        self.weight_L, self.temperature_L = (
            torch.tensor([schedule.on(moment) for moment in self.moments], device=device)
            for schedule in (sampler.guidance, sampler.temperature)
        )
        # In the order of the sequence, with room for what is drafted beyond its end.
        self.token_BM = torch.zeros((self.rows, length + window + 1), dtype=torch.int64, device=device)
        self.keep_BM = torch.zeros_like(self.token_BM, dtype=torch.bool)
        if self.given is not None:
            keep = torch.ones(length, dtype=torch.bool, device=device) if self.keep_L is None else self.keep_L
            self.token_BM[:, :length] = self.given.gather(1, self.sequence_BL)
            self.keep_BM[:, :length] = keep.expand(self.rows, -1).gather(1, self.sequence_BL)
        self.done_B = torch.zeros(self.rows, dtype=torch.int64, device=device)
        self.ahead = 0
        self._prefix()

    def _allocate(self) -> None:
        vector, net = self.cond.vector_BD, self.model.net
        self.stride = self.model.feed.window_slots
        self.room = self.model.feed.slots(self.plan, self.model.condition.prefix) + self.stride * (self.window + 1)
        self.cache = net.cache(len(vector), self.room, vector)
        self.at_R = torch.zeros(len(vector), dtype=torch.int64, device=self.device)
        for layer in self.cache:
            layer.fix(self.at_R)

    def _prefix(self) -> None:
        slots = self.model.feed.step(self.state, self.both, self.cond, 0)
        self.prefix = slots.x_BSD.shape[1]
        h = self.model.read(self._net(slots), slots)
        self.first_B1V = self._probabilities(h, torch.zeros((self.rows, 1), dtype=torch.int64, device=self.device))
        self.at_R.fill_(self.prefix)
        self._rewind(torch.full_like(self.done_B, self.prefix))

    # --- verbs

    @torch.no_grad()
    def begin(self, token_B1: Tensor | None = None) -> Tensor:
        """Decide the first token of each row (B, 1): this one, or a draw."""
        if token_B1 is None:
            token_B1 = draw_from(self.first_B1V, self.draws.uniform("first", 0, 1))
        token_B1 = self.kept(token_B1, 0)
        self._settle(token_B1, torch.ones_like(self.done_B))
        return token_B1

    @torch.no_grad()
    def run(self, token_Bn: Tensor) -> Tensor:
        """The net on tokens that follow what it has run on: probabilities (B, n, V) of what comes after each of them."""
        count = token_Bn.shape[1]
        entry_Bn = (self.done_B - 1 + self.ahead)[:, None] + torch.arange(count, device=self.device)
        entry_Bn = entry_Bn.clamp_max(self.model.layout.length - 1)
        twice = 2 if self.guided else 1
        slots = self.model.feed.window(token_Bn.repeat(twice, 1), entry_Bn.repeat(twice, 1), self.both, self.cond)
        h = self.model.read(self._net(slots), slots)
        self.ahead += count
        self.at_R += self.stride * count
        return self._probabilities(h, entry_Bn + 1)

    def propose(self, token_BW: Tensor, draft_BWV: Tensor) -> None:  # type: ignore[override]
        """Draft the next tokens, each of which was drawn from its distribution, independently of those drawn with it."""
        self.draft_BW, self.draft_BWV = self.kept(token_BW, 0), draft_BWV

    @torch.no_grad()
    def verify(self, step: int, rule: Relaxation | None = None) -> Outcome:  # type: ignore[override]
        """Run the net on what was proposed and say what of it holds; given tokens always do.

        The tokens of the outcome are distributed as those of decoding one by one (arXiv:2211.17192, theorem 3.5), unless a rule says
        otherwise.
        """
        accepted = acceptable if rule is None else rule.holds
        token, draft, window = self.draft_BW, self.draft_BWV, self.draft_BW.shape[1]
        target = self.run(torch.cat([self.last_B1, token], dim=1))
        holds = accepted(target[:, :-1], draft, token, self.draws.uniform("verify", step, window)) | self._keeps(0, window)
        hold_B = leading(holds)
        at = hold_B[:, None, None].expand(-1, 1, target.shape[2])
        # After a window that holds as a whole there is no draft: its probabilities are zero.
        beyond = torch.cat([draft, torch.zeros_like(draft[:, :1])], dim=1)
        there, drafted = target.gather(1, at), beyond.gather(1, at)
        if rule is None:
            rest = residual(there, drafted)
        else:
            at_end = (hold_B == window)[:, None, None]
            rest = torch.where(at_end, there, rule.rest(there, drafted, token.gather(1, hold_B.clamp_max(window - 1)[:, None])))
        new = draw_from(rest, self.draws.uniform("verify.next", step, 1))
        both = torch.cat([token, new], dim=1).scatter(1, hold_B[:, None], new)
        return Outcome(target, hold_B, self.kept(both, 0))

    @torch.no_grad()
    def commit(self, outcome: Outcome) -> None:  # type: ignore[override]
        """Make the new tokens of an outcome permanent."""
        self._settle(outcome.token, outcome.hold_B + 1)

    def rollback(self, mark: ChainMark | None = None) -> None:  # type: ignore[override]
        """Forget all that was run since the last commit, or go back to a mark."""
        self._rewind(torch.zeros_like(self.done_B))
        if mark is not None:
            self.token_BM, self.done_B, self.ended_B = mark.token_BM.clone(), mark.done_B.clone(), mark.ended_B.clone()
            for layer, saved in zip((layer for layer in self.cache or [] if isinstance(layer, State)), mark.recurrent):
                layer.restore(saved)
        self._stand()

    def mark(self) -> ChainMark:  # type: ignore[override]
        """The present point, between a commit and the next run."""
        recurrent = tuple(layer.copy() for layer in self.cache or [] if isinstance(layer, State))
        return ChainMark(self.token_BM.clone(), self.done_B.clone(), self.ended_B.clone(), recurrent)

    def tokens(self) -> Tokens:
        length = self.model.layout.length
        token = self.token_BM[:, :length]
        if self.stop is not None:
            token = torch.where(torch.arange(length, device=self.device) < self.done_B[:, None], token, self.stop)
        data = torch.zeros_like(token).scatter(1, self.sequence_BL, token)
        return Tokens(data, self.model.layout, None if self.stop is None else self.done_B.clone())

    @property
    def done(self) -> bool:
        """Whether all rows have ended; this waits for the device."""
        return bool((self.ended_B | (self.done_B >= self.model.layout.length)).all())

    @property
    def last_B1(self) -> Tensor:
        """The last decided token of each row, which the net has not run on yet."""
        return self.token_BM.gather(1, self.done_B[:, None] - 1)

    def kept(self, token_Bn: Tensor, ahead: int) -> Tensor:
        """Tokens for the entries from ``ahead`` after the decided ones on, with the given ones in place."""
        index = self._entries(ahead, token_Bn.shape[1])
        return torch.where(self.keep_BM.gather(1, index), self.token_BM.gather(1, index), token_Bn)

    # --- inside

    def _entries(self, ahead: int, count: int) -> Tensor:
        return (self.done_B + ahead)[:, None] + torch.arange(count, device=self.device)

    def _keeps(self, ahead: int, count: int) -> Tensor:
        return self.keep_BM.gather(1, self._entries(ahead, count))

    def _settle(self, token_Bn: Tensor, count_B: Tensor) -> None:
        """Write tokens, of which the first ``count_B`` of each row are permanent, and put caches where they belong."""
        self.token_BM.scatter_(1, self._entries(0, token_Bn.shape[1]), token_Bn)
        count_B = torch.minimum(count_B, self.model.layout.length - self.done_B)
        if self.stop is not None:
            index = torch.arange(token_Bn.shape[1], device=self.device)
            hit_Bn = (token_Bn == self.stop) & (index < count_B[:, None])
            count_B = torch.where(hit_Bn.any(1), hit_Bn.long().argmax(1) + 1, count_B).masked_fill(self.ended_B, 0)
            self.ended_B = self.ended_B | hit_Bn.any(1)
        # As many slots stay as tokens are decided: the last one has not been run.
        if self.ahead:
            self._rewind(self.stride * count_B)
        self.done_B += count_B
        self._stand()
        self.trace.step(count_B)

    def _stand(self) -> None:
        twice = 2 if self.guided else 1
        self.ahead = 0
        self.at_R.copy_((self.stride * (self.done_B - 1) + self.prefix).repeat(twice))

    def _rewind(self, count_B: Tensor) -> None:
        for layer in self.cache or []:
            if isinstance(layer, State):
                layer.rewind(count_B.repeat(2) if self.guided else count_B)

    def _net(self, slots: Any) -> Tensor:
        count = slots.x_BSD.shape[1]
        self.trace.call(count)
        if self.model.net.keeps == "state":
            return self.model.net(slots, Causal(), self.cond, self.cache)
        slot_RS = self.at_R[:, None] + torch.arange(count, device=self.device)
        visible = torch.arange(self.room, device=self.device) <= slot_RS[:, :, None]
        return self.model.net(slots, Mask(unpadded(visible, slot_RS, self.cond.seen_BP)), self.cond, self.cache)

    def _probabilities(self, h_RnD: Tensor, entry_Bn: Tensor) -> Tensor:
        """(B, n, V) what these entries are drawn from: guided, at their temperature, filtered."""
        head, rows = cast(Categorical, self.model.head), self.rows
        entry_Bn = entry_Bn.clamp_max(self.model.layout.length - 1)
        weight, temperature = (table[entry_Bn].unsqueeze(-1) for table in (self.weight_L, self.temperature_L))
        logits = head.guided(Hidden(h_RnD[:rows], h_RnD[rows:] if self.guided else None, weight))
        logits = logits / temperature.clamp_min(1e-6)
        return keep(logits, self.sampler.top_k, self.sampler.top_p).softmax(-1)

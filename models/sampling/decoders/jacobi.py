"""Speculative Jacobi decoding: a model drafts for itself (SJD, arXiv:2410.01699).

Shapes: B rows, W drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.nets.recurrent.branching import pick
from tokenloom.models.sampling.chain import ChainSession, Outcome, refusal
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.rejection import draw_from
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable
from tokenloom.models.sampling.trace import Trace


@dataclass(frozen=True)
class Drafts:
    """Distributions (B, W, V) of the entries of the window; the tokens that were drawn for them one call ago, from which distributions, and
    where there were any (B, W)."""

    draft_BWV: Tensor
    token_BW: Tensor
    before_BWV: Tensor
    drawn_BW: Tensor


@dataclass(frozen=True, kw_only=True)
class Jacobi(Decoder, tag="decoder.jacobi"):
    """Each call of the net verifies a window of drafts and drafts the next one (algorithm 1).

    A draft was drawn from the net's distribution of its entry one call ago, given the drafts of that time; it holds by rejection sampling
    against its distribution now.  Entries that no call has covered are drafted uniformly.  Samples are distributed exactly as
    those of decoding one by one; the fewer calls, the less neighbouring tokens depend on each other.
    Differs: the paper's other first drafts, taken from neighbouring positions of the image, are not here.
    """

    paper: ClassVar = "2410.01699"
    needs: ClassVar[tuple[str, ...]] = ("one position after another", "one softmax a token")
    limits: ClassVar = {"window": Range(1, 4096)}

    window: int = 16

    def refusal(self, model: Decodable, sampler: Sampler) -> str | None:
        return refusal(model, sampler)

    def run(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = ChainSession(model, conditions, sampler, draws, window=self.window, **given)
        session.begin()
        now, step = self.blind(session), 0
        while not session.done:
            now = self.step(session, now, step)
            step += 1
        return session.tokens(), session.trace

    def blind(self, session: ChainSession) -> Drafts:
        """The uniform distribution for each entry of the window."""
        codes = session.first_B1V.shape[2]
        draft_BWV = session.first_B1V.new_full((session.rows, self.window, codes), 1 / codes)
        nothing_BW = torch.zeros((session.rows, self.window), dtype=torch.int64, device=session.device)
        return Drafts(draft_BWV, nothing_BW, draft_BWV, nothing_BW.bool())

    def drafted(self, session: ChainSession, now: Drafts, step: int) -> Tensor:
        """A draw (B, W) of the drafts."""
        return draw_from(now.draft_BWV, session.draws.uniform("draft", step, self.window))

    def step(self, session: ChainSession, now: Drafts, step: int) -> Drafts:
        """One call of the net: verify a draw of the drafts; the next ones."""
        token_BW = session.kept(self.drafted(session, now, step), 0)
        session.propose(token_BW, now.draft_BWV)
        outcome = self.verified(session, step)
        session.commit(outcome)
        return self.next(outcome, token_BW, now.draft_BWV, self.blind(session))

    def verified(self, session: ChainSession, step: int) -> Outcome:
        """What of the drafts holds."""
        return session.verify(step)

    def next(self, outcome: Outcome, token_BW: Tensor, draft_BWV: Tensor, blind: Drafts) -> Drafts:
        """The net's distributions of the entries after the new tokens, given drafts that may not have held; then uniform ones."""

        def after(each: Tensor, rest: Tensor) -> Tensor:
            both = torch.cat([each, rest], dim=1)
            index = outcome.hold_B[:, None] + 1 + torch.arange(self.window, device=both.device)
            return pick(both, index.clamp_max(both.shape[1] - 1))

        known = after(outcome.target, blind.draft_BWV)
        drawn = torch.ones_like(token_BW, dtype=torch.bool)
        more = torch.cat([blind.draft_BWV, blind.draft_BWV[:, :1]], 1), torch.cat([blind.token_BW, blind.token_BW[:, :1]], 1)
        return Drafts(known, after(token_BW, more[1]), after(draft_BWV, more[0]), after(drawn, torch.zeros_like(more[1], dtype=torch.bool)))

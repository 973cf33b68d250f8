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
from tokenloom.models.sampling.chain import ChainSession, Outcome, refusal
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.rejection import draw_from
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable
from tokenloom.models.sampling.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Jacobi(Decoder, tag="decoder.jacobi"):
    """Each call of the net verifies a window of drafts and drafts the next one (algorithm 1).

    A draft was drawn from the net's distribution of its entry one call ago, given the drafts of that time; it holds by rejection sampling
    against its distribution now.  Entries that no call has covered are drafted uniformly.  Samples are distributed exactly as
    those of decoding one by one; the fewer calls, the less neighbouring tokens depend on each other.
    """

    paper: ClassVar = "2410.01699"
    needs: ClassVar = ("one position after another", "one softmax a token")
    limits: ClassVar = {"window": Range(1, 4096)}

    window: int = 16

    def refusal(self, model: Decodable, sampler: Sampler) -> str | None:
        return refusal(model, sampler)

    def run(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = ChainSession(model, conditions, sampler, draws, window=self.window, **given)
        session.begin()
        draft_BWV = self.blind(session)
        step = 0
        while not session.done:
            draft_BWV = self.step(session, draft_BWV, step)
            step += 1
        return session.tokens(), session.trace

    def blind(self, session: ChainSession) -> Tensor:
        """The uniform distribution for each entry of the window."""
        codes = session.first_B1V.shape[2]
        return session.first_B1V.new_full((session.rows, self.window, codes), 1 / codes)

    def step(self, session: ChainSession, draft_BWV: Tensor, step: int) -> Tensor:
        """One call of the net: verify a draw of the drafts; the distributions of the next ones."""
        session.propose(draw_from(draft_BWV, session.draws.uniform("draft", step, self.window)), draft_BWV)
        outcome = session.verify(step)
        session.commit(outcome)
        return self.next(outcome, self.blind(session))

    def next(self, outcome: Outcome, blind_BWV: Tensor) -> Tensor:
        """The net's distributions of the entries after the new tokens, given drafts that may not have held; then uniform ones."""
        known = torch.cat([outcome.target, blind_BWV], dim=1)
        index = outcome.hold_B[:, None] + 1 + torch.arange(self.window, device=known.device)
        return known.gather(1, index.unsqueeze(-1).expand(-1, -1, known.shape[2]))

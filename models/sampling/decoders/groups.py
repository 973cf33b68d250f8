"""Group-wise decoding: one step for each group of the plan, as most methods are published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.proposal import Decoded
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable, DecodingSession
from tokenloom.models.sampling.trace import Trace


@dataclass(frozen=True, kw_only=True)
class GroupWise(Decoder, tag="decoder.group_wise"):
    """All that is drawn holds, except where the order keeps only what it is surest of."""

    def refusal(self, model: Decodable, sampler: Sampler) -> str | None:
        return None

    def steps(self, session: DecodingSession) -> Iterator[Decoded]:
        """Group after group, until all positions are decided or all rows have ended."""
        for group in range(session.plan.groups):
            yield session.commit(session.verify(session.propose(group)))
            if session.done:
                return

    def run(self, model: Decodable, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = DecodingSession(model, conditions, sampler, draws, **given)
        for _ in self.steps(session):
            pass
        return session.tokens(), session.trace

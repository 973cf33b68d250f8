"""What ways to decode with fewer layers share: which generators have layers that can be left out, and the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.scales.base import cache_refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import DecodingSession
from tokenloom.models.sampling.trace import Trace


class LayerDecoder(Decoder):
    """Group after group, with something done before each step."""

    needs: ClassVar[tuple[str, ...]] = ("attention caches",)

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        plan = model.order.decode(replace(model.layout), 1, SampleDraws.of(0, 0, 1), sampler.sizes)
        if model.feed.passes != "cached" or plan.choice is not None or plan.window is not None:
            return "its steps do not attend to what is cached of all earlier ones"
        return cache_refusal(model)

    def opened(self, session: DecodingSession) -> None:
        """Called before the first step."""

    def before(self, session: DecodingSession, step: int) -> None:
        """Called before a step."""

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = DecodingSession(model, conditions, sampler, draws, **given)
        self.opened(session)
        for step in range(session.plan.groups):
            self.before(session, step)
            session.commit(session.verify(session.propose(step)))
            if session.done:
                break
        return session.tokens(), session.trace

"""What ways to decode scale after scale share: which generators have scales, and the loop.

Shapes: B rows.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Tokens
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable, DecodingSession
from tokenloom.models.sampling.trace import Trace


def refusal(model: Decodable, sampler: Sampler) -> str | None:
    """Why a generator does not decode whole scales, one after another; None where it does."""
    sizes = model.layout.scale_sizes
    plan = model.order.decode(replace(model.layout), 1, SampleDraws.of(0, 0, 1), sampler.sizes)
    if len(sizes) < 2 or plan.choice is not None or plan.sizes != sizes:
        return f"the order {type(model.order).__qualname__} does not decode whole scales, one after another"
    if plan.window is not None or model.feed.passes != "cached":
        return "its scales do not attend to what is cached of all earlier ones"
    return None


def cache_refusal(model: Decodable) -> str | None:
    """Why layers of a generator cannot decode in another way; None where they can."""
    net = model.net
    if not isinstance(net, Transformer) or type(net).block is not Transformer.block or type(net).cache is not Transformer.cache:
        return f"the net {type(net).__qualname__} is no plain transformer, whose layers each have keys and values"
    return None


def prefix_refusal(model: Any) -> str | None:
    """Why caches that see all that they keep cannot serve a generator: slots of its condition may be padding; None where they can."""
    slots = model.condition.prefix
    return None if slots <= 1 else f"its condition has {slots} slots, and those that are padding would be attended to"


def halves(total: int, budget: float, share: float) -> tuple[int, int]:
    """Slots of ``total`` that each of the one half keeps, and each of the other, ``share`` of the first: their mean is the budget."""
    mean = max(1, math.ceil(budget * total))
    most = min(total, round(2 * mean / (1 + share)))
    return most, max(1, min(total, 2 * mean - most))


class ScaleDecoder(Decoder):
    """Group after group, with something done before or after each scale."""

    needs: ClassVar[tuple[str, ...]] = ("scales", "attention caches")

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return refusal(model, sampler) or cache_refusal(model)

    def opened(self, session: DecodingSession) -> None:
        """Called before the first scale."""

    def before(self, session: DecodingSession, scale: int) -> None:
        """Called before a scale is drawn."""

    def after(self, session: DecodingSession, scale: int) -> None:
        """Called once a scale is permanent."""

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        session = DecodingSession(model, conditions, sampler, draws, **given)
        self.opened(session)
        for scale in range(session.plan.groups):
            self.before(session, scale)
            session.commit(session.verify(session.propose(scale)))
            self.after(session, scale)
        return session.tokens(), session.trace


def replace_caches(session: DecodingSession, kind: type[LayerCache], **fields: Any) -> None:
    """Give each layer an empty cache of another kind."""
    like = session.cond.vector_BD
    session.cache = [
        kind(len(like), layer.key_BHTE.shape[1], layer.key_BHTE.shape[2], layer.key_BHTE.shape[3], like, **fields)
        for layer in session.cache or []
    ]

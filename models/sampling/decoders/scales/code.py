"""A large model draws the small scales, a small one the large scales (CoDe, arXiv:2411.17787).

Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Conditions, LayoutError, Tokens
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.slots import Slots
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.scales.base import refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import DecodingSession
from tokenloom.models.sampling.trace import Trace


@dataclass(frozen=True, kw_only=True)
class CoDe(Decoder, tag="decoder.code"):
    """The generator draws the first ``drafts`` scales, the second model those that are left: it takes in what is drawn by one call.

    With the generator itself as the second model, or with ``drafts`` of all scales, samples are those of the generator.
    Differs: both models are taken as they were trained, and draw under one sampler; the paper also trains each further on its own scales.
    """

    limits: ClassVar = {"drafts": Range(1, 4096)}
    paper: ClassVar = "2411.17787"
    exact: ClassVar = False
    needs: ClassVar[tuple[str, ...]] = ("a second model", "scales")

    drafts: int = 8
    model: Added[str] = ""

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        if (reason := refusal(model, sampler)) is not None:
            return reason
        if self.drafts > len(model.layout.scale_sizes):
            return f"drafts={self.drafts}, and it has {len(model.layout.scale_sizes)} scales"
        small = model.draft
        if small is None:
            return "no second model is there; name one over the same tokens in the field model: RUN or ARTIFACT"
        try:
            model.layout.check(small.layout)
        except LayoutError as error:
            return f"the second model is for other tokens: {error}"
        if small.net.keeps != "slots":
            return f"the second model's net {type(small.net).__qualname__} cannot take in several scales by one call"
        reason = refusal(small, sampler)
        return None if reason is None else f"of the second model: {reason}"

    def run(self, model: Any, conditions: Conditions, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        large = DecodingSession(model, conditions, sampler, draws, **given)
        for scale in range(self.drafts):
            large.commit(large.verify(large.propose(scale)))
        if self.drafts == large.plan.groups:
            return large.tokens(), large.trace
        small = DecodingSession(model.draft, conditions, sampler, draws, **given)
        take_in(small, large, self.drafts)
        for scale in range(self.drafts, small.plan.groups):
            small.commit(small.verify(small.propose(scale)))
        large.trace.calls["draft"] = small.trace.calls["net"]
        large.trace.committed += small.trace.committed
        large.trace.steps += small.trace.steps
        large.trace.seconds = small.trace.begun + small.trace.seconds - large.trace.begun
        return small.tokens(), large.trace


@torch.no_grad()
def take_in(session: DecodingSession, drawn: DecodingSession, groups: int) -> None:
    """Make the first groups of another session's permanent, and run the net on them at once."""
    parts: list[Slots] = []
    feed, twice = session.model.feed, 2 if session.guided else 1
    for group in range(groups):
        parts.append(feed.step(session.state, session.both, session.cond, group))
        place = session.plan.members(group)
        data, index = take(drawn.data, place), place.expand(session.rows, -1)
        session.data.scatter_(1, index.view(*index.shape, *[1] * (data.ndim - 2)).expand_as(data), data)
        session.known_BL.scatter_(1, index, True)
        session.state = feed.push(session.state, session.both, group, data.repeat(twice, *[1] * (data.ndim - 1)), place)
    rows = max(len(part.x_BSD) for part in parts)
    x = torch.cat([part.x_BSD.expand(rows, -1, -1) for part in parts], 1)
    group_BS, place_BS = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("group_BS", "position_BS"))
    session._run(replace(parts[0], x_BSD=x, group_BS=group_BS, position_BS=place_BS, visibility=None))

"""Heads that all positions use alike keep few slots, heads that follow the picture's structure many (HACK, arXiv:2504.09261).

Shapes: B rows, H heads, T kept slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.budget import BudgetCache
from tokenloom.models.sampling.decoders.scales.base import ScaleDecoder, halves, prefix_refusal, replace_caches
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import DecodingSession


@dataclass(frozen=True, kw_only=True)
class HACK(ScaleDecoder, tag="decoder.hack"):
    """After each scale the heads keep a share ``budget`` of all slots so far.

    The half of a layer's heads whose attention varies least between positions are contextual: they keep ``contextual`` times as much as
    the others, the slots with most attention in all.  The others are structural, each position has keys of its own: they keep the slots
    with most attention of any position.  ``queries`` positions are asked.  With ``budget`` 1 samples are those of the generator.
    Differs: which heads are contextual is decided for each sample and scale, not on calibration data; slots that go are not merged.
    """

    limits: ClassVar = {"budget": Range(0, 1), "contextual": Range(0, 1), "queries": Range(1, 4096)}
    paper: ClassVar = "2504.09261"
    exact: ClassVar = False

    budget: float = 0.5
    contextual: float = 0.25
    queries: int = 32

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return super().refusal(model, sampler) or prefix_refusal(model)

    def opened(self, session: DecodingSession) -> None:
        replace_caches(session, BudgetCache)

    def after(self, session: DecodingSession, scale: int) -> None:
        plan = session.plan
        if scale + 1 == plan.groups:
            return
        total = plan.start(scale + 1)
        most, least = halves(total, self.budget, self.contextual)
        for layer in cast("list[BudgetCache]", session.cache):
            p_BHST = layer.attention(self.queries)
            varies_BH = p_BHST.var(2, correction=0).sum(-1)
            heads = varies_BH.shape[1]
            contextual_BH = varies_BH.argsort(dim=1, stable=True).argsort(dim=1) < heads // 2
            count_BH = torch.where(contextual_BH, least, most)
            layer.keep(torch.where(contextual_BH[..., None], p_BHST.mean(2), p_BHST.amax(2)), count_BH)

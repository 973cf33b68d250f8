"""Layers that look back keep many slots of earlier scales, layers that look at their own scale few (ScaleKV, arXiv:2505.19602).

Shapes: B rows, H heads, N layers, T kept slots.
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
class ScaleKV(ScaleDecoder, tag="decoder.scale_kv"):
    """After each scale the layers keep a share ``budget`` of all slots so far, those that its positions attended to most.

    The half of the layers whose attention is most on the scale itself are refiners, and keep ``refiner`` times as much as the others,
    the drafters.  ``queries`` evenly spread positions are asked.  With ``budget`` 1 samples are those of the generator.
    Differs: which layers refine is decided for each sample and scale from its own attention, not on calibration data.
    """

    limits: ClassVar = {"budget": Range(0, 1), "refiner": Range(0, 1), "queries": Range(1, 4096)}
    paper: ClassVar = "2505.19602"
    exact: ClassVar = False

    budget: float = 0.3
    refiner: float = 0.25
    queries: int = 16

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return super().refusal(model, sampler) or prefix_refusal(model)

    def opened(self, session: DecodingSession) -> None:
        replace_caches(session, BudgetCache)

    def after(self, session: DecodingSession, scale: int) -> None:
        layers, plan = cast("list[BudgetCache]", session.cache), session.plan
        if scale + 1 == plan.groups:
            return
        seen = [layer.attention(self.queries) for layer in layers]
        own_BN = torch.stack([each[..., -plan.sizes[scale] :].sum(-1).mean((1, 2)) for each in seen], 1)
        rank_BN = own_BN.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        total = plan.start(scale + 1)
        most, least = halves(total, self.budget, self.refiner)
        for index, (layer, each) in enumerate(zip(layers, seen)):
            refines_B = rank_BN[:, index] < len(layers) // 2
            count_B = torch.where(refines_B, least, most)
            score_BT = each.mean((1, 2))
            heads = layer.alive_BHT.shape[1]
            layer.keep(score_BT[:, None].expand(-1, heads, -1), count_B[:, None].expand(-1, heads))

"""A draft model that sees a shorter condition (SpecVLM, arXiv:2509.11815).

Shapes: B rows, P prefix slots, S slots that are left, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenloom.models.core.limits import Range
from tokenloom.models.core.protocols import Condition, Conditions
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.recurrent.branching import pick
from tokenloom.models.sampling.decoders.draft import DraftModel
from tokenloom.models.sampling.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class SpecVLM(DraftModel, tag="decoder.spec_vlm"):
    """As ``draft_model``; of the condition's prefix (a text, features of an image) the draft model is given ``slots`` slots.

    Elastic: each row has its longest slots alone (pruning) where these hold at least ``share`` of the squared length of all, else the
    means of neighbouring ones (pooling).  Samples are those of the generator in distribution, whatever the draft model sees.
    Differs: pruning and pooling, which need no training; the paper's convolution and resampler, its learned choice and its online
    distillation of the draft model are not here, and drafts are a sequence, not EAGLE-2's tree.
    """

    limits: ClassVar = {"window": Range(1, 4096), "slots": Range(1, 1 << 16), "share": Range(0, 1)}
    paper: ClassVar = "2509.11815"
    needs: ClassVar[tuple[str, ...]] = (*DraftModel.needs, "a condition of several slots")

    slots: int = 16
    share: float = 0.8

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        if (reason := super().refusal(model, sampler)) is not None:
            return reason
        if model.draft.condition.prefix <= self.slots:
            return f"the draft model's condition has {model.draft.condition.prefix} slots, no more than slots={self.slots}"
        return None

    def drafting(self, draft: Any) -> Any:
        return _Shorter(draft, self)


class _Shorter:
    """A generator whose condition is compressed; all else is its own."""

    def __init__(self, model: Any, by: SpecVLM) -> None:
        self._model, self.condition = model, _Compressed(model.condition, by)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _Compressed:
    """A condition of fewer slots."""

    def __init__(self, whole: Any, by: SpecVLM) -> None:
        self.whole, self.by, self.prefix = whole, by, by.slots
        self.null: Callable[[Conditions | Condition], Conditions] = whole.null

    def __call__(self, conditions: Conditions | Condition) -> Conditioned:
        return compressed(self.whole(conditions), self.by.slots, self.by.share)


def compressed(cond: Conditioned, slots: int, share: float) -> Conditioned:
    """The condition with S prefix slots: those of the greatest length, in their order, or means of neighbours."""
    x_BPD, count = cond.prefix_BPD, cond.prefix_BPD.shape[1]
    seen_BP = torch.ones(x_BPD.shape[:2], dtype=torch.bool, device=x_BPD.device) if cond.seen_BP is None else cond.seen_BP
    energy_BP = x_BPD.square().sum(-1) * seen_BP
    most_BS = energy_BP.topk(slots, dim=1).indices.sort(1).values
    prunes_B = energy_BP.gather(1, most_BS).sum(1) >= share * energy_BP.sum(1)
    part_P = torch.arange(count, device=x_BPD.device) * slots // count
    member_SP = (part_P == torch.arange(slots, device=x_BPD.device)[:, None]).to(x_BPD.dtype)
    weight_BSP = member_SP * seen_BP[:, None]
    total_BS = weight_BSP.sum(2)
    pooled_BSD = weight_BSP @ x_BPD / total_BS.clamp_min(1).unsqueeze(-1)
    kept: Tensor = torch.where(prunes_B[:, None, None], pick(x_BPD, most_BS), pooled_BSD)
    left_BS = torch.where(prunes_B[:, None], seen_BP.gather(1, most_BS), total_BS > 0)
    return replace(cond, prefix_BPD=kept, seen_BP=None if cond.seen_BP is None else left_BS)

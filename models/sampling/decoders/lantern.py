"""Speculative decoding that takes near codes for each other, within a bound (LANTERN, arXiv:2410.03355)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor

from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.decoders.draft import DraftModel
from tokenloom.models.sampling.decoders.relaxed import Neighbours, Rule, latents, latents_refusal, neighbours
from tokenloom.models.sampling.sampler import Sampler


@dataclass(frozen=True, kw_only=True)
class Lantern(DraftModel, tag="decoder.lantern"):
    """As ``draft_model``, but a drafted code may use the probability of up to ``neighbours`` codes that are nearest to it, of less than
    ``bound`` in all: for each draft the net's distribution is moved by less than that in total variation.  With ``bound`` 0 it is
    ``draft_model``.

    Differs: nearness is that of the rows of the head's output map, since a generator of plain ids does not hold the tokenizer's codebook;
    drafts are a sequence, not EAGLE-2's tree.
    """

    limits: ClassVar = {"window": Range(1, 4096), "neighbours": Range(1, 1 << 20), "bound": Range(0, 1)}
    paper: ClassVar = "2410.03355"
    exact: ClassVar = False
    needs: ClassVar[tuple[str, ...]] = (*DraftModel.needs, "a direction for each code")

    neighbours: int = 1000
    bound: float = 0.1

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return super().refusal(model, sampler) or latents_refusal(model)

    def rule(self, large: ChainSession) -> Rule:
        return Neighbours(neighbours(cast(Tensor, latents(large.model)), self.neighbours), self.bound)

"""Attention by low-rank features where scores are small, whose cost would grow with slots, not with pairs (arXiv:2501.04377)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.budget import LowRankCache
from tokenloom.models.sampling.decoders.scales.base import ScaleDecoder, prefix_refusal, replace_caches
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import DecodingSession


@dataclass(frozen=True, kw_only=True)
class LowRankAttention(ScaleDecoder, tag="decoder.low_rank_attention"):
    """Weights of attention are the Taylor polynomial of ``degree`` of the exponential, wherever scores are bounded by ``norm``.

    With scores within R a weight is off by a factor of at most ``e = exp(2 R) R^(g + 1) / (g + 1)!`` for degree g, what is attended to by
    ``2 e / (1 - e)`` times the greatest value.  With ``norm`` 0 attention is exact.
    Differs: sums by features and exact ones are both made and the bound chooses, so that no sample depends on its batch: this shows the
    error, not the speed.
    """

    limits: ClassVar = {"degree": Range(2, 8), "norm": Range(0, 1e6)}
    paper: ClassVar = "2501.04377"
    exact: ClassVar = False

    degree: int = 2
    norm: float = 1.0

    def __post_init__(self) -> None:
        if self.degree % 2:
            raise ConfigError(f"decoder.low_rank_attention.degree={self.degree}: must be even, so that no weight is below zero")

    def refusal(self, model: Any, sampler: Sampler) -> str | None:
        return super().refusal(model, sampler) or prefix_refusal(model)

    def opened(self, session: DecodingSession) -> None:
        replace_caches(session, LowRankCache, degree=self.degree, norm=self.norm)

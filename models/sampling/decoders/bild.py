"""A little model writes, a big one is asked where it is unsure and corrects what it finds unlikely (BiLD, arXiv:2302.07863)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.decoders.draft import DraftModel
from tokenloom.models.sampling.decoders.relaxed import BigLittle, Rule


@dataclass(frozen=True, kw_only=True)
class BiLD(DraftModel, tag="decoder.bild"):
    """The second model drafts, up to ``window`` tokens, until its likeliest token has less than ``fallback``; then the generator draws one
    token, and takes back the first that costs it more than ``rollback`` nats with all after it.

    Samples are the generator's at the strict ends alone, ``fallback`` above 1 or ``rollback`` 0.
    Differs: all rows of a batch are verified together, after ``window`` tokens, whenever each of them fell back.
    """

    limits: ClassVar = {"window": Range(1, 4096), "fallback": Range(0, 2), "rollback": Range(0, 1e6)}
    paper: ClassVar = "2302.07863"
    exact: ClassVar = False

    window: int = 10
    fallback: float = 0.5
    rollback: float = 3.0

    def rule(self, large: ChainSession) -> Rule:
        return BigLittle(self.fallback, self.rollback)

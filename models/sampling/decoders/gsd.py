"""Speculative Jacobi decoding over groups of codes that may stand for each other (GSD, arXiv:2508.07747).

Shapes: B rows, W drafted tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from tokenloom.models.core.limits import Range
from tokenloom.models.sampling.chain import ChainSession, Outcome
from tokenloom.models.sampling.decoders.jacobi import Jacobi
from tokenloom.models.sampling.decoders.relaxed import Grouped, latents, latents_refusal
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import Decodable


@dataclass(frozen=True, kw_only=True)
class GSD(Jacobi, tag="decoder.gsd"):
    """As ``jacobi``, but a draft holds with probability min(1, q(C) / p(C)) for a cluster C of codes around it.

    The cluster changes from entry to entry: the codes within ``half`` places of the drafted one by the net's probability, which differs
    by less than ``near``, and of like direction (``apart``: one less the cosine).  With ``half`` 0 it is ``jacobi``.  An entry's
    distribution is moved, in total variation, by no more than the mean over drafts of what the chance to hold has changed.
    Differs: directions are the rows of the head's output map; the released code's distance is between embeddings of image tokens.
    """

    limits: ClassVar = {"half": Range(0, 4096), "near": Range(0, 1), "apart": Range(0, 2)}
    paper: ClassVar = "2508.07747"
    exact: ClassVar = False
    needs: ClassVar[tuple[str, ...]] = ("one position after another", "one softmax a token", "a direction for each code")

    half: int = 7
    near: float = 0.15
    apart: float = 0.5

    def refusal(self, model: Decodable, sampler: Sampler) -> str | None:
        return super().refusal(model, sampler) or latents_refusal(model)

    def verified(self, session: ChainSession, step: int) -> Outcome:
        return session.verify(step, Grouped(cast(Tensor, latents(session.model)), self.half, self.near, self.apart))

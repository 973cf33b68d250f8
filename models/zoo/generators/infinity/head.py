"""The bitwise head: the codebooks of a position are independent given its hidden state.

Shapes: B rows, N positions, D width, Q codebooks, V codes of each (2 for bits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.categorical import full, pick
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Moment, Sampler


class Bitwise(Head):
    """A softmax for each codebook (Infinity's infinite-vocabulary classifier, arXiv:2412.04431): Q V outputs for V to the Q codes."""

    likelihood = "exact"

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.bitwise"):
        """``init_std`` of the output map (0: zeros)."""

        init_std: float = 0.0

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Bitwise:
            if not layout.discrete:
                raise LayoutError("a bitwise head needs discrete tokens")
            return Bitwise(self, layout, width)

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        self.codebooks = layout.codebooks
        self.out = nn.Linear(width, layout.codebooks * layout.vocabulary)
        nn.init.trunc_normal_(self.out.weight, std=config.init_std) if config.init_std else nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def traits(self, plan: Plan) -> Traits:
        return {"logits": Trait("yes", "head")}

    def logits(self, h_BND: Tensor) -> Tensor:
        """(B, N, Q, V) logits."""
        return full(self.out(h_BND)).unflatten(2, (self.codebooks, -1))

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """The sum over codebooks, (B, N)."""
        ids = target.view(*h_BND.shape[:2], self.codebooks)
        logits = self.logits(h_BND)
        return F.cross_entropy(logits.flatten(0, 2), ids.flatten(), reduction="none").view(ids.shape).sum(-1)

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        logits = hidden.guided(self.logits)
        ids = pick(logits, sampler, moment, draws) if forced is None else forced.view(logits.shape[:-1])
        return Drawn(ids if self.codebooks > 1 else ids.squeeze(-1), logits)

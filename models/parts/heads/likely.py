"""A categorical head that says how likely its tokens are.  Shapes: B rows, N positions, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.parts.feeds.base import Feed
from models.parts.heads.base import Drawn
from models.parts.heads.categorical import Categorical, single
from models.protocols import TokenLayout
from models.sampling.sampler import Moment, Sampler


class Likely(Categorical):
    """As ``Categorical``, but what is told of a token is its log-probability, so that positions can be compared."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Categorical.Config):
        """As ``Categorical``."""

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Likely:
            return Likely(self, single(layout), width)

    def draw(
        self,
        h_BND: Tensor,
        null_BND: Tensor | None,
        sampler: Sampler,
        moment: Moment,
        generator: torch.Generator,
        forced: Tensor | None = None,
    ) -> Drawn:
        drawn = super().draw(h_BND, null_BND, sampler, moment, generator, forced)
        assert drawn.logits is not None
        return replace(drawn, chosen_BN=drawn.logits.log_softmax(-1).gather(-1, drawn.data.unsqueeze(-1)).squeeze(-1))

"""Heads of continuous tokens, which share how they are asked: given tokens are taken, others are drawn under settings of the head's own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment, Sampler


class ContinuousHead(Head):
    """A head with ``settings`` that draws tokens (B, N, C)."""

    @staticmethod
    def channels_of(layout: TokenLayout) -> int:
        """Channels C of the tokens.

        Raises:
            LayoutError: they are discrete.
        """
        if layout.discrete:
            raise LayoutError("this head needs continuous tokens, such as those of the recipes kl and series_patches")
        return layout.channels

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        if forced is not None:
            return Drawn(forced)
        assert self.settings is not None, "a head of continuous tokens names its settings"
        return Drawn(self.sample(hidden, self.settings() if sampler.head is None else sampler.head, moment, draws))

    @abstractmethod
    def sample(self, hidden: Hidden, own: Any, moment: Moment, draws: SampleDraws) -> Tensor:
        """Tokens (B, N, C) drawn under settings of the type ``settings``, by numbers of the streams ``head…``."""

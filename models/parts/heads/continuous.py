"""Heads of continuous tokens, which share how they are asked: given tokens are taken, others are drawn under settings of the head's own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
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


class NoiseHead(ContinuousHead):
    """A head that makes each token from noise of its own; several positions may so share a hidden state."""

    def traits(self, plan: Plan) -> Traits:
        return {"several positions from one hidden state": Trait("yes", "head")}

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) of targets (B, N, C); (B, N, K) of targets (B, N, K, C), K positions from each hidden state."""
        if draws is None:
            raise ValueError(f"the loss of {type(self).__name__} needs draws")
        if target.ndim == 3:
            return self.position_loss(h_BND, target, draws)
        each = target.shape[2]
        return self.position_loss(h_BND.repeat_interleave(each, 1), target.flatten(1, 2), draws).unflatten(1, (-1, each))

    @abstractmethod
    def position_loss(self, h_BND: Tensor, target_BNC: Tensor, draws: Draws) -> Tensor:
        """(B, N) what is minimised, one position from each hidden state."""

"""Heads of continuous tokens, which share how they are asked: given tokens are taken, others are drawn under settings of the head's own."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any

from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Constant, Interval, Moment, Sampler


def refuse_logit_settings(sampler: Sampler, settings: type[HeadSampler] | None) -> None:
    """Refuse what only draws of ids from logits follow, for a model that draws numbers under ``settings`` of its own.

    Raises:
        ConfigError: a temperature, top-k or top-p, naming it and what there is in its place.
    """
    given = {"temperature": sampler.temperature == Constant(value=1.0), "top_k": not sampler.top_k, "top_p": sampler.top_p >= 1}
    for name in (name for name, absent in given.items() if not absent):
        fields = "" if settings is None else ", ".join(field.name for field in dataclasses.fields(settings))
        own = f"; it is set by sample.head: {{{settings.tag.partition('.')[2]}: …}}, with {fields}" if settings else ""
        raise ConfigError(f"sample.{name}: this model draws numbers, not ids from logits, and has no such setting{own}")


def refuse_schedules(sampler: Sampler) -> None:
    """Refuse guidance and temperatures that change on the way, for a model that draws all positions at once.

    Raises:
        ConfigError: naming the option.
    """
    names = {"guidance_interval" if isinstance(sampler.guidance, Interval) else "guidance_schedule": sampler.guidance}
    for name, schedule in (names | {"temperature_end": sampler.temperature}).items():
        if not isinstance(schedule, Constant):
            raise ConfigError(f"sample.{name}: this model draws all positions at once and takes a constant alone")


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

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse settings of another head, and those of logits."""
        super().check_sampler(sampler)
        refuse_logit_settings(sampler, self.settings)

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

"""Categorical heads that draw unlikely tokens again.  Shapes: B rows, N positions, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Predict
from tokenloom.models.parts.heads.categorical import Categorical, pick
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.zoo.generators.srdd.feed import Refinable


def _check(threshold: float, rounds: int) -> None:
    if not 0 <= threshold < 1 or rounds < 0:
        raise ConfigError(f"head.threshold={threshold}, rounds={rounds}: threshold in [0, 1), rounds at least 0")


class Resampled(Categorical):
    """Draws, then draws those tokens again, so many times, whose probability is below a threshold (SRDD, arXiv:2509.22636).

    With mass m below the threshold and r rounds, a token above it has ``1 + m + … + m^r`` times its probability, one below
    it ``m^r`` times.  Where the tokens of a group depend on nothing of each other, this refines a whole group without another pass.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Categorical.Config, tag="head.resampled", label="categorical, drawn again"):
        """``threshold`` on the guided probability of what was drawn, ``rounds`` of drawing again (0: none)."""

        threshold: float = 0.1
        rounds: int = 4

        def __post_init__(self) -> None:
            _check(self.threshold, self.rounds)

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__(config, layout, width)
        self.threshold, self.rounds = config.threshold, config.rounds

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        drawn = super().draw(hidden, sampler, moment, draws, forced)
        if forced is not None or drawn.logits is None:
            return drawn
        probability, ids = drawn.logits.softmax(-1), drawn.data
        for i in range(self.rounds):
            unsure = probability.gather(-1, ids.unsqueeze(-1)).squeeze(-1) < self.threshold
            ids = torch.where(unsure, pick(drawn.logits, sampler, moment, draws, f"again.{i}"), ids)
        return replace(drawn, data=ids)


class Refined(Categorical):
    """Draws a scale, then predicts it again, so many times, and draws the tokens anew that were unlikely (SRDD, arXiv:2509.22636).

    The net is given the input of the scale with its likely tokens added, the unlikely ones left out, so that a round knows more than the
    one before.
    """

    calls = "several"

    @dataclass(frozen=True, kw_only=True)
    class Config(Categorical.Config, tag="head.refined", label="categorical, refined"):
        """``threshold`` on the guided probability of what was drawn, ``rounds`` of prediction after the first (0: none)."""

        threshold: float = 0.1
        rounds: int = 1

        def __post_init__(self) -> None:
            _check(self.threshold, self.rounds)

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Refined:
            if not isinstance(feed, Refinable):
                raise LayoutError("this head refines the input of a scale: it needs the feed refinable_scale")
            return Refined(self, layout, width, feed)

    def __init__(self, config: Config, layout: TokenLayout, width: int, feed: Refinable) -> None:
        super().__init__(config, layout, width)
        self.threshold, self.rounds = config.threshold, config.rounds
        # In a list, so that its weights stay the feed's alone.
        self._feed = [feed]

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        drawn = super().draw(hidden, sampler, moment, draws, forced)
        if forced is not None or predict is None or drawn.logits is None:
            return drawn
        ids, logits = drawn.data, drawn.logits
        for i in range(self.rounds):
            sure_Bn = Drawn(ids, logits).log_probability_BN().exp() >= self.threshold
            again = self.guided(predict(self._feed[0].refined(ids, sure_Bn)))
            ids = torch.where(sure_Bn, ids, pick(again, sampler, moment, draws, f"again.{i}"))
            logits = torch.where(sure_Bn.unsqueeze(-1), logits, again)
        return Drawn(ids, logits)

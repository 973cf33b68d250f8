"""A categorical head that draws unlikely tokens again.  Shapes: B rows, N positions, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.heads.base import Predict
from tokenloom.models.parts.heads.categorical import Categorical, pick
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment, Sampler


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
            if not 0 <= self.threshold < 1 or self.rounds < 0:
                raise ConfigError(f"head.threshold={self.threshold}, rounds={self.rounds}: threshold in [0, 1), rounds at least 0")

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

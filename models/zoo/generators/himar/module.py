"""Masked generation in two resolutions: pivots first, then dense tokens that are given the pivots' hidden states.

Shapes: B rows, n pivots, N dense tokens, L = n + N positions, C channels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.diffusion import TIMES, DiffusionSampler, spaced
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.heads.continuous import refuse_logit_settings
from tokenloom.models.parts.heads.diffusion import Diffusion
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.orders import Steps, TruncatedNormal
from tokenloom.models.parts.orders.sizes import CosineCurve, rule_of
from tokenloom.models.sampling.sampler import Constant, Moment, Sampler, Schedule
from tokenloom.models.zoo.generators.himar.head import GridDiffusion
from tokenloom.models.zoo.generators.himar.net import PivotAutoencoder


@dataclass(frozen=True, kw_only=True)
class PivotSampler(DiffusionSampler, tag="head_sampler.pivots"):
    """As ``DiffusionSampler`` for each pivot, under ``pivot_guidance`` over ``pivot_rounds``; dense tokens follow in ``rounds``, each of
    ``dense_steps`` of the chain, under the sampler's guidance."""

    pivot_guidance: Schedule = Constant(value=0.0)
    pivot_rounds: int = 32
    rounds: int = 4
    dense_steps: int = 250

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.pivot_rounds, self.rounds) < 1 or not 1 <= self.dense_steps <= TIMES:
            raise ConfigError(
                f"sample.head.pivot_rounds={self.pivot_rounds}, rounds={self.rounds}, dense_steps={self.dense_steps}: at least one each, "
                f"and at most {TIMES} steps"
            )


class Round(NamedTuple):
    """One round of sampling: hidden states that a head was given, its guidance, its samples, and which positions were unknown before."""

    hidden: Hidden
    token: Tensor
    unknown: Tensor


class HiMAR(protocols.Generator):
    """``p(pivots) p(dense | hidden states of the pivots)`` by one masked autoencoder that is passed twice (arXiv:2505.20288)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.himar"):
        """``shown``: share of the rows whose dense tokens are given the pivots in training, reached evenly over the first ``warmup`` of the
        steps; ``weights`` of the losses of pivots and of dense tokens; pivots are masked as ``curve`` says, dense tokens along a cosine."""

        net: PivotAutoencoder.Config
        head: Diffusion.Config
        dense: GridDiffusion.Config
        curve: TruncatedNormal = TruncatedNormal()
        shown: float = 0.25
        warmup: float = 0.25
        weights: tuple[float, float] = (0.4, 0.6)
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler(head=PivotSampler())

        def __post_init__(self) -> None:
            if not 0 <= self.shown <= 1 or not 0 < self.warmup <= 1 or min(self.weights) < 0 or len(self.weights) != 2:
                raise ConfigError(f"shown={self.shown}, warmup={self.warmup}, weights={self.weights}: shares in [0, 1], two weights")

        @property
        def axis_labels(self) -> dict[str, str]:
            return super().axis_labels | {
                "order": "pivots, then dense tokens, masked",
                "feed": "known values, hidden states of pivots",
                "head": "diffusion; over the grid for dense tokens",
                "objective": "diffusion loss",
            }

        def build(self, layout: TokenLayout, classes: int, tokenizer: object = None, **given: object) -> HiMAR:
            """The generator for these tokens.

            Raises:
                LayoutError: not continuous tokens of two grids.
            """
            if layout.discrete or len(layout.grids) != 2 or layout.frames > 1:
                raise LayoutError(
                    f"grids={layout.grids}: pivots and dense tokens are continuous tokens of two grids, such as those of kl_pyramid"
                )
            return HiMAR(self, layout, classes)

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler = config, layout, config.sampler
        self.pivots, width = layout.scale_sizes[0], config.net.width
        self.condition = config.condition.build(classes, width)
        self.embed, self.embed_pivot, self.embed_state = (
            nn.Linear(channels, width) for channels in (layout.channels, layout.channels, width)
        )
        for linear in (self.embed, self.embed_pivot, self.embed_state):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.no_pivot = nn.Parameter(torch.empty(self.pivots, layout.channels))
        nn.init.normal_(self.no_pivot, std=0.02)
        self.net = PivotAutoencoder(config.net, layout)
        self.head = cast(
            Diffusion, config.head.build(TokenLayout(grids=layout.grids[:1], channels=layout.channels), width, cast(Any, None))
        )
        self.dense = GridDiffusion(config.dense, layout.grids[1], layout.channels, width)

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        return super().no_decay(name, parameter) or name in ("no_pivot", "net.mask")

    # --- training

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss`` and its parts: the head's at masked pivots, and the dense head's at masked dense tokens."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        data = full_tokens_of(batch.tokens).float()
        shares = self.config.curve.masked(float(draws.host_uniform())), CosineCurve().masked(float(draws.host_uniform()))
        pivots, dense = (
            draws.permutation(count) < max(1, math.ceil(share * count))
            for share, count in zip(shares, (self.pivots, self.layout.length - self.pivots))
        )
        given = draws.uniform() < self.config.shown * min(1.0, draws.progress / self.config.warmup)
        dropped = [self.condition.drop(batch.conditions, draws if self.training else None) for _ in range(2)]
        own = draws if self.training else None
        first = self.pivot_states(data, pivots, self.condition(dropped[0]).vector_BD, own)
        second = self.dense_states(data, dense, self.guides(first, pivots, given), self.condition(dropped[1]).vector_BD, own)
        parts = self.parts(first, second, data, pivots, dense, (draws.fork("pivots"), draws.fork("dense")))
        return {"loss": parts["pivots"] + parts["dense"]} | {name: part.detach() for name, part in parts.items()}

    def parts(
        self, first: Tensor, second: Tensor, data: Tensor, pivots: Tensor, dense: Tensor, noise: tuple[Draws, Draws]
    ) -> dict[str, Tensor]:
        """The two weighted losses, given hidden states of both passes and what is masked of pivots and of dense tokens."""
        one, other = data.split([self.pivots, data.shape[1] - self.pivots], 1)
        loss = self.head.loss(first, one, noise[0])
        return {
            "pivots": self.config.weights[0] * (loss * pivots).sum() / pivots.sum(),
            "dense": self.config.weights[1] * self.dense.loss(second, other, dense, noise[1]).mean(),
        }

    def pivot_states(self, data: Tensor, masked_Bn: Tensor, vector_BD: Tensor, draws: Draws | None = None) -> Tensor:
        """Hidden states (B, n, D) of pivots from those that are not masked; no dense token is seen."""
        one, other = data.split([self.pivots, data.shape[1] - self.pivots], 1)
        x = torch.cat([self.embed_pivot(one), self.embed(other)], 1)
        known = torch.nn.functional.pad(~masked_Bn, (0, other.shape[1]), value=False)
        return self.net(0, x, vector_BD, known, draws)[:, : self.pivots]

    def guides(self, state_BnD: Tensor, masked_Bn: Tensor, given_B: Tensor) -> Tensor:
        """(B, n, D) what stands at the pivots in the second pass of training: hidden states where they predicted something and the row
        is given them, else a learned vector.  No gradient goes back to the first pass."""
        use = (masked_Bn & given_B[:, None]).unsqueeze(-1)
        return torch.where(use, self.embed_state(state_BnD.detach()), self.embed_pivot(self.no_pivot))

    def dense_states(self, data: Tensor, masked_BN: Tensor, guide_BnD: Tensor, vector_BD: Tensor, draws: Draws | None = None) -> Tensor:
        """Hidden states (B, N, D) of dense tokens from those that are not masked and from the pivots'."""
        x = torch.cat([guide_BnD, self.embed(data[:, self.pivots :])], 1)
        known = torch.nn.functional.pad(~masked_BN, (self.pivots, 0), value=True)
        return self.net(1, x, vector_BD, known, draws)[:, self.pivots :]

    # --- sampling

    @torch.no_grad()
    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition: both grids."""
        *_, (_, data) = self.walk(conditions, sampler, draws)
        return Tokens(data, self.layout)

    @torch.no_grad()
    def walk(
        self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws, orders: tuple[Tensor, Tensor] | None = None
    ) -> Iterator[tuple[Round, Tensor]]:
        """The rounds, each with all tokens (B, L, C) after it; ``orders`` (B, n) and (B, N) list the positions that are masked longest
        first."""
        own = cast(PivotSampler, sampler.head or PivotSampler())
        vector, rows, n = self.condition(conditions).vector_BD, conditions.rows, self.pivots
        draws, total = draws.to(vector.device, rows), self.layout.length - n
        first, second = orders or (draws.permutation("pivots", 0, n), draws.permutation("order", 0, total))
        null = self.condition(self.condition.null(conditions)).vector_BD
        data, state = vector.new_zeros((rows, self.layout.length, self.layout.channels)), vector.new_zeros((rows, n, vector.shape[1]))
        moments = moments_of(Steps(count=own.pivot_rounds).cut(n))
        guided = any(own.pivot_guidance.on(moment) for moment in moments)
        for moment in moments:
            masked = torch.zeros_like(first, dtype=torch.bool).scatter(1, first[:, : n - moment.before], True)
            place = first[:, n - moment.after : n - moment.before].sort(1).values
            both = [take(self.pivot_states(data, masked, each), place) for each in ((vector, null) if guided else (vector,))]
            hidden = Hidden(both[0], both[1] if guided else None, own.pivot_guidance.on(moment))
            token = self.head.sample(hidden, own, moment, draws)
            data, state = (x.scatter(1, place.unsqueeze(-1).expand_as(new), new) for x, new in ((data, token), (state, both[0])))
            yield Round(hidden, token, masked), data
        guide, times = self.embed_state(state), spaced(own.dense_steps)
        moments = moments_of(rule_of(Steps(count=own.rounds), sampler.sizes).cut(total))
        guided = any(sampler.guidance.on(moment) for moment in moments)
        for moment in moments:
            masked = torch.zeros_like(second, dtype=torch.bool).scatter(1, second[:, : total - moment.before], True)
            both = [self.dense_states(data, masked, guide, each) for each in ((vector, null) if guided else (vector,))]
            hidden = Hidden(both[0], both[1] if guided else None, sampler.guidance.on(moment))
            start = draws.normal("dense", moment.step, total, self.layout.channels)
            noise = partial(self._noise, own.temperature, draws, moment.step)
            token = self.dense.sample(hidden, start, times, noise, data[:, n:], ~masked)
            # What is not kept yet is drawn again in the next round, which does not see it.
            data = torch.cat([data[:, :n], torch.where(masked.unsqueeze(-1), token, data[:, n:])], 1)
            yield Round(hidden, token, masked), data

    def _noise(self, temperature: float, draws: SampleDraws, step: int, i: int) -> Tensor:
        return temperature * draws.normal(f"dense.{i}", step, self.layout.length - self.pivots, self.layout.channels)

    def check_sampler(self, sampler: Sampler) -> None:
        """``steps`` are rounds of dense tokens; all else is of ``pivots``."""
        super().check_sampler(replace(sampler, sizes=None))
        if not isinstance(sampler.head or PivotSampler(), PivotSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: Hi-MAR takes 'pivots' alone")
        refuse_logit_settings(sampler, PivotSampler)


def moments_of(sizes: tuple[int, ...]) -> list[Moment]:
    """The moments of rounds that add so many positions each."""
    ends = list(accumulate(sizes))
    return [Moment(i, len(sizes), end - size, end, ends[-1]) for i, (end, size) in enumerate(zip(ends, sizes))]

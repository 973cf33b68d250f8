"""Generators over noisy tokens: all positions are refined together, from noise to data.

Shapes: B rows, L positions, V codes, D width.  Time runs from 0, noise, to 1, data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.generators.group_wise import rows_of, tokens_of
from tokenloom.models.generators.noising import Absorbing, Noise
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.dropout import dropout
from tokenloom.models.parts.feeds.base import span
from tokenloom.models.parts.feeds.embedding import Ids
from tokenloom.models.parts.heads.categorical import Categorical, pick, single
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.orders.sizes import Count, Curve, Steps, Straight
from tokenloom.models.parts.plan import Choice
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.time import sinusoidal_embedding
from tokenloom.models.parts.visibility import Everything
from tokenloom.models.sampling.filters import inverse, keep
from tokenloom.models.sampling.sampler import Moment, Sampler


class DiscreteState(protocols.Generator):
    """A net over all tokens, some of them corrupted, and predicts the data at every position."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.discrete_state"):
        """``curve`` is the share of lost tokens over time, ``steps`` those of the chain, in loss and, by default, in sampling.

        ``clock``: whether the time is an input of the net.  ``choice``: None draws every token's next state by itself (diffusion, discrete
        flow); else each step shows the tokens that it finds surest, as many as the curve says ([MASK] only).
        """

        noise: Noise
        net: Transformer.Config
        curve: Curve = Straight()
        steps: int = 100
        clock: Literal["explicit", "implicit"] = "explicit"
        choice: Choice | None = None
        dropout: float = 0.0
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def __post_init__(self) -> None:
            if self.steps < 1:
                raise ConfigError(f"steps={self.steps}: must be at least 1")
            if self.choice is not None and not isinstance(self.noise, Absorbing):
                raise ConfigError("choice: only masked tokens can be chosen; leave it out or use the noise Absorbing")

        @property
        def axis_labels(self) -> dict[str, str]:
            own = {"order": "all at once, in steps", "feed": self.noise.label, "head": "categorical", "objective": "denoising"}
            return super().axis_labels | own

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler = config, layout, config.sampler
        self.codes, width = single(layout), config.net.width
        self.condition = config.condition.build(classes, width)
        self.table = Ids(layout, width, spare=config.noise.extra)
        self.position = nn.Parameter(torch.empty(1, layout.length, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.clock: nn.Module | None = None
        if config.clock == "explicit":
            self.clock = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.net = config.net.build(layout)
        self.head = Categorical(Categorical.Config(bias="yes"), layout, width)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: that of the noise, at a random step of the chain for each row; the batch's steps are spread evenly."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        ids, steps, length = full_tokens_of(batch.tokens), self.config.steps, self.layout.length
        row = torch.arange(draws.start, draws.stop) / draws.total
        step = ((draws.host_uniform() + row).frac() * steps).long().clamp_max(steps - 1).to(ids.device)
        t, s = self._keep(step / steps), self._keep((step + 1) / steps)
        noisy = self.config.noise.corrupt(ids, t, draws.uniform(length), draws.uniform(length), self.codes)
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        logits = self.logits(noisy, step / steps, conditions, draws if self.training else None)
        return {"loss": self.config.noise.loss(logits, ids, noisy, s, t, steps).mean()}

    def logits(self, x_BL: Tensor, time_B: Tensor, conditions: Conditions, draws: Draws | None = None) -> Tensor:
        """(B, L, V) logits of the data given tokens or [MASK]."""
        cond = self.condition(conditions)
        x = dropout(self.table(x_BL) + self.position, self.config.dropout, draws)
        place = span(0, self.layout.length, x.device)
        modulation = cond.vector_BD
        if self.clock is not None:
            modulation = modulation + self.clock(sinusoidal_embedding(time_B, modulation.shape[-1]).to(modulation.dtype))
        slots = Slots(x, torch.zeros_like(place), place, place, visibility=Everything(), condition_BSD=modulation[:, None])
        return self.head.logits(self.net(slots, Everything(), cond, draws=draws))

    @torch.no_grad()
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition; ``sample.steps`` sets the number of steps."""
        return self._collect(self.states(conditions, sampler, draws))

    @torch.no_grad()
    def inpaint(self, tokens: Tokens, keep_L: Tensor, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """Samples that hold the given tokens where ``keep_L`` (L,) is true, without training for it: in each step they are shown
        with as much noise as the others."""
        self.layout.check(tokens.layout)
        return self._collect(self.states(conditions, sampler, draws, tokens_of(tokens), keep_L))

    @torch.no_grad()
    def states(
        self,
        conditions: Conditions,
        sampler: Sampler,
        draws: SampleDraws,
        given: Tensor | None = None,
        keep_L: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The tokens (B, L) after each step; [MASK] is the id after the last code."""
        rows, length, device = rows_of(conditions), self.layout.length, self.position.device
        keep_L = torch.zeros(length, dtype=torch.bool, device=device) if keep_L is None else keep_L.to(device)
        steps, noise = self._steps(sampler), self.config.noise

        draws = draws.to(device, rows)

        def noise_of(stream: str, step: int) -> tuple[Tensor, Tensor]:
            first, second = draws.uniform(stream, step, 2, length).unbind(1)
            return first, second

        def fixed(x_BL: Tensor, share: Tensor, step: int) -> Tensor:
            if given is None:
                return x_BL
            return torch.where(keep_L, noise.given(given, share, *noise_of("given", step), self.codes), x_BL)

        share = self._keep(torch.zeros(rows, device=device))
        nothing = torch.zeros((rows, length), dtype=torch.int64, device=device)
        x = fixed(noise.corrupt(nothing, share, *noise_of("start", 0), self.codes), share, 0)
        for step in range(steps):
            before, after = (round(self._known(i / steps) * length) for i in (step, step + 1))
            moment = Moment(step, steps, before, after, length)
            time = torch.full((rows,), step / steps, device=device)
            weight = sampler.guidance.on(moment)
            null = self.logits(x, time, self.condition.null(conditions)) if weight else None
            logits = guide(self.logits(x, time, conditions), null, weight)
            if self.config.choice is None:
                later = self._keep(time + 1 / steps)
                warm = logits / max(sampler.temperature.on(moment), 1e-6)
                p = keep(warm, sampler.top_k, sampler.top_p).softmax(-1)
                u = draws.uniform("head", step, length)
                x = fixed(inverse(noise.posterior(p, x, later, share).log(), u), later, step + 1)
                share = later
            else:
                x = self._surest(self.config.choice, x, logits, sampler, moment, draws)
            yield x

    def _surest(self, choice: Choice, x_BL: Tensor, logits_BLV: Tensor, sampler: Sampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """Show the surest tokens, so that as many are masked as the curve says for the next time, at least one less than now."""
        drawn = pick(logits_BLV, sampler, moment, draws)
        masked = x_BL == self.codes
        sure = choice.confidence(Drawn(drawn, logits_BLV), moment.step, moment.steps, draws).masked_fill(~masked, -torch.inf)
        goal = math.floor((1 - self._known((moment.step + 1) / moment.steps)) * self.layout.length)
        left = masked.sum(1, keepdim=True)
        show = (left - goal).clamp_min(1)
        rank = sure.argsort(dim=1, descending=True).argsort(dim=1)
        return torch.where(masked & (rank < show), drawn, x_BL)

    def check_sampler(self, sampler: Sampler) -> None:
        """Any number of steps is allowed."""
        super().check_sampler(replace(sampler, sizes=None))
        self._steps(sampler)

    def _steps(self, sampler: Sampler) -> int:
        match sampler.sizes:
            case None:
                return self.config.steps
            case Steps(count=count) | Count(count=count):
                return count
        raise ConfigError("sample.steps: all positions are refined together here, so that only a number of steps can be set")

    def _known(self, time: float) -> float:
        return 1 - self.config.curve.masked(min(1.0, time))

    def _keep(self, time_B: Tensor) -> Tensor:
        """(B, 1) share of tokens that carry their value; one at the end of time, whatever the rounding."""
        share = torch.tensor([[self._known(t) if t < 1 - 1e-6 else 1.0] for t in time_B.tolist()], dtype=torch.float32)
        return share.clamp(0, 1).to(time_B.device)

    def _collect(self, states: Iterator[Tensor]) -> Tokens:
        data: Tensor | None = None
        for x in states:
            data = x
        assert data is not None
        return Tokens(data, self.layout)

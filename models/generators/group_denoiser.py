"""Generators that denoise one group of continuous tokens after the other, by one net: autoregression over groups, a flow within each.

Shapes: B rows, L positions, G groups, n positions of a group, S slots, C channels, D width.  Time runs from 0, noise, to 1, data
(``parts.flows.matching``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import ClassCondition, Conditioned, Conditioner, stack
from tokenloom.models.parts.feeds.base import span, take
from tokenloom.models.parts.flows.matching import FlowSampler, Times, between, times
from tokenloom.models.parts.heads.continuous import ContinuousHead, refuse_logit_settings
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.time import TimeEmbedding
from tokenloom.models.parts.visibility import EVERYTHING, Groups, Visibility
from tokenloom.models.sampling.sampler import Moment, Sampler


class GroupDenoiser(protocols.Generator):
    """A net that sees noisy tokens, each group at a time of its own, and predicts their noise less their data; a group attends to itself
    and to earlier groups, which are noisy in training too: no clean copy is needed, and an error of an early group is nothing new."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.group_denoiser"):
        """``times``: how training draws the time of a group."""

        order: Order
        net: SlotNet.Config
        times: Times = "logit_normal"
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler(head=FlowSampler())

        @property
        def axis_labels(self) -> dict[str, str]:
            return super().axis_labels | {"feed": "noisy groups", "head": "velocity of the group", "objective": "flow matching"}

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.order, self.sampler = config, layout, config.order, config.sampler
        channels, width = ContinuousHead.channels_of(layout), config.net.width
        self.condition = config.condition.build(classes, width)
        self.time = TimeEmbedding(width, frequencies=128, unit=1.0)
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.empty(layout.length, width))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.net = config.net.build(layout)
        self.out = nn.Linear(config.net.output_width, channels)
        for layer in (self.embed, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.position, std=0.02)
        with torch.device("cpu"):  # also where the model is built without memory
            config.order.plan(replace(layout), None)  # refuses tokens that it cannot order

    # --- training

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: squared error of the velocity, each group at a time of its own (arXiv:2502.20388, equation 4)."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        plan = self.order.plan(self.layout, None).to(self.position.device)
        data = take(full_tokens_of(batch.tokens).float(), plan.sequence_BL)
        time_BG = times(self.config.times, draws, plan.groups)
        noise = draws.normal(*data.shape[1:])
        noisy = between(noise, data, time_BG[:, plan.group_L])
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        velocity = self(noisy, time_BG, conditions, plan, draws if self.training else None)
        return {"loss": (velocity - (data - noise)).square().mean()}

    def forward(self, x_BLC: Tensor, time_BG: Tensor, conditions: Conditions | Condition, plan: Plan, draws: Draws | None = None) -> Tensor:
        """Velocities (B, L, C) of noisy tokens in the order of the plan's sequence, each group at its time."""
        group_1L = plan.group_L[None]
        visibility = Groups(group_1L, group_1L) if plan.groups > 1 else EVERYTHING
        time = time_BG if len(set(plan.sizes)) == 1 else time_BG[:, plan.group_L]
        return self._run(x_BLC, time, self.condition(conditions), plan.sequence_BL, group_1L, visibility, None, draws)

    def _run(
        self,
        x_BSC: Tensor,
        time: Tensor,
        cond: Conditioned,
        place_1S: Tensor,
        group_1S: Tensor,
        visibility: Visibility,
        cache: list[LayerCache] | None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Velocities of tokens at these places of the layout, at times (B, 1, G or S)."""
        x = self.norm(self.embed(x_BSC.to(self.embed.weight.dtype)) + self.position[place_1S])
        # The net is told the share of noise in whole thousandths.
        vector = cond.vector_BD[:, None] + self.time(((1 - time) * 1000 + 1e-4).floor())
        slots = Slots(x, group_1S, place_1S, span(0, x.shape[1], x.device), visibility=visibility, condition_BSD=vector)
        return -self.out(self.net(slots, visibility, cond, cache, draws)).float()

    # --- sampling

    @torch.no_grad()
    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition."""
        plan = self.order.plan(self.layout, None).to(self.position.device)
        groups = list(self.groups(conditions, sampler, draws))
        data = torch.zeros_like(torch.cat(groups, 1))
        index = plan.sequence_BL.expand(len(data), -1).unsqueeze(-1).expand_as(data)
        return Tokens(data.scatter(1, index, torch.cat(groups, 1)), self.layout)

    @torch.no_grad()
    def groups(
        self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws, given: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(B, n, C) each group's tokens, one after the other; of ``given`` (B, L, C) tokens, those come next instead of the drawn ones."""
        device, plan = self.position.device, self.order.plan(self.layout, None).to(self.position.device)
        draws, length = draws.to(device, conditions.rows), self.layout.length
        own = sampler.head if isinstance(sampler.head, FlowSampler) else FlowSampler()
        moments = [Moment(g, plan.groups, plan.start(g), plan.start(g + 1), length) for g in range(plan.groups)]
        cond = self.condition(conditions)
        if any(sampler.guidance.on(moment) for moment in moments):
            cond = stack(cond, self.condition(self.condition.null(conditions)))
        cache = self.net.cache(len(cond.vector_BD), length, cond.vector_BD)
        for g, moment in enumerate(moments):
            x = self._denoised(moment, cond, plan.members(g), cache, own, sampler.guidance.on(moment), draws)
            yield x
            known = x if given is None else take(given, plan.members(g)).to(x)
            if g + 1 < plan.groups:  # what later groups attend to: the group at the time of data
                self.step(known, 1.0, cond, plan.members(g), cache)

    def step(self, x_BnC: Tensor, time: float, cond: Conditioned, place_1n: Tensor, cache: list[LayerCache]) -> Tensor:
        """Velocities of the group at these places after what is cached, in all rows of the condition; the cache then holds it too."""
        x = x_BnC.repeat(len(cond.vector_BD) // len(x_BnC), 1, 1)
        share = torch.full((1, 1), time, dtype=torch.float64, device=x.device)
        return self._run(x, share, cond, place_1n, torch.zeros_like(place_1n), EVERYTHING, cache)

    def _denoised(
        self,
        moment: Moment,
        cond: Conditioned,
        place_1n: Tensor,
        cache: list[LayerCache],
        own: FlowSampler,
        weight: float,
        draws: SampleDraws,
    ) -> Tensor:
        """Tokens (B, n, C) of a group, drawn after what is cached."""
        shape = (moment.after - moment.before, self.layout.channels)

        def velocity(x: Tensor, time: float) -> Tensor:
            both = self.step(x, time, cond, place_1n, cache)
            for layer in cache:
                layer.truncate(moment.before)
            return guide(both[: len(x)], both[len(x) :] if weight else None, weight)

        return own.walk(draws.normal("head", moment.step, *shape), velocity, lambda i: draws.normal(f"head.{i}", moment.step, *shape))

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        if sampler.head is not None and not isinstance(sampler.head, FlowSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: {type(self).__name__} takes 'flow' alone")
        refuse_logit_settings(sampler, FlowSampler)

"""Next-scale prediction of continuous tokens, each scale drawn as a whole by flow matching.

Shapes: B rows, L positions of all scales, n positions of one, C channels, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import ClassCondition, Conditioned, Conditioner, stack
from tokenloom.models.parts.feeds.base import span
from tokenloom.models.parts.flows.matching import FlowSampler, Times, between, times
from tokenloom.models.parts.heads.continuous import refuse_logit_settings
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.halves import Halves
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import EVERYTHING, Groups, Visibility
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.zoo.generators.flowar.head import ScaleFlow


@dataclass(frozen=True, kw_only=True)
class ScaleSampler(FlowSampler, tag="head_sampler.scale_flow"):
    """As ``FlowSampler`` for each scale; there is guidance from the time ``guided`` on."""

    guided: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.guided <= 1:
            raise ConfigError(f"sample.head.guided={self.guided}: must be in [0, 1]")


class FlowAR(protocols.Generator):
    """``p(x) = prod_s p(scale s | the scales before it)``, each factor a flow from noise (arXiv:2412.15205)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.flowar"):
        """``times``: how training draws the time of a scale."""

        net: Halves.Config
        head: ScaleFlow.Config
        times: Times = "uniform"
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler(head=ScaleSampler())

        @property
        def axis_labels(self) -> dict[str, str]:
            return super().axis_labels | {"order": "scales", "feed": "the scale before, resized", "objective": "flow matching"}

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> FlowAR:
            """The generator for these tokens.

            Raises:
                LayoutError: not continuous tokens, or not of several scales.
            """
            if layout.discrete or len(layout.grids) < 2 or layout.frames > 1:
                raise LayoutError(f"grids={layout.grids}: needs continuous tokens of several scales, such as those of kl_pyramid")
            return FlowAR(self, layout, classes)

    scale: Tensor

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler, width = config, layout, config.sampler, config.net.width
        self.condition = config.condition.build(classes, width)
        self.embed, self.norm = nn.Linear(layout.channels, width), nn.RMSNorm(width, eps=1e-6)
        nn.init.xavier_uniform_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.position, self.position_out = (nn.Parameter(torch.empty(layout.length, width)) for _ in range(2))
        for weight in (self.position, self.position_out):
            nn.init.normal_(weight, std=0.02)
        self.net = config.net.build(layout)
        self.head = ScaleFlow(config.head, layout, width)
        self.register_buffer("scale", layout.positions[:, 1].clone(), persistent=False)

    # --- training

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: squared error of the velocity, the mean over a scale, summed by their shares of the largest (section 3.3)."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        data, own = full_tokens_of(batch.tokens).float(), draws if self.training else None
        h = self(data, self.condition.drop(batch.conditions, own), own)
        time_BL = times(self.config.times, draws, len(self.layout.grids))[:, self.scale]
        noise = draws.normal(*data.shape[1:])
        velocity = self.head(between(noise, data, time_BL), time_BL, h, self.every)
        error = (velocity - (data - noise)).square().mean((0, 2))
        return {"loss": error.sum() / self.layout.scale_sizes[-1]}

    @property
    def every(self) -> Tensor:
        """(L,) all positions."""
        return torch.arange(self.layout.length, device=self.position.device)

    def forward(self, data: Tensor, conditions: Conditions | Condition, draws: Draws | None = None) -> Tensor:
        """Hidden states (B, L, D) of all scales, each from the scales before it."""
        parts = data.split(list(self.layout.scale_sizes), 1)
        cond = self.condition(conditions)
        given = [self._begin(cond), *(self.embed(self.grown(x, i + 1)) for i, x in enumerate(parts[:-1]))]
        group = self.scale[None]
        return self._states(torch.cat(given, 1), self.every, cond, Groups(group, group), None, draws)

    def grown(self, x_BnC: Tensor, scale: int) -> Tensor:
        """A scale as the input of the next one, number ``scale``: stretched to the largest grid, then averaged over areas."""
        grids = self.layout.grids
        image = F.interpolate(x_BnC.transpose(1, 2).unflatten(2, grids[scale - 1]), size=grids[-1], mode="bicubic")
        return F.interpolate(image, size=grids[scale], mode="area").flatten(2).transpose(1, 2)

    def _begin(self, cond: Conditioned) -> Tensor:
        return cond.vector_BD[:, None].expand(-1, self.layout.scale_sizes[0], -1)

    def _states(
        self,
        x_BnD: Tensor,
        place_n: Tensor,
        cond: Conditioned,
        visibility: Visibility,
        cache: list[LayerCache] | None,
        draws: Draws | None = None,
    ) -> Tensor:
        x = self.norm(x_BnD + self.position[place_n])
        slots = Slots(x, self.scale[place_n][None], place_n[None], span(0, x.shape[1], x.device), visibility=visibility)
        return self.net(slots, visibility, cond, cache, draws) + self.position_out[place_n]

    # --- sampling

    @torch.no_grad()
    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition: all scales."""
        own, rows, sizes = cast(ScaleSampler, sampler.head or ScaleSampler()), conditions.rows, self.layout.scale_sizes
        draws, count = draws.to(self.position.device, rows), len(sizes)
        moments = [Moment(i, count, sum(sizes[:i]), sum(sizes[: i + 1]), self.layout.length) for i in range(count)]
        guided = any(sampler.guidance.on(moment) for moment in moments)
        cond = self.condition(conditions)
        cond = stack(cond, self.condition(self.condition.null(conditions))) if guided else cond
        cache, x, found = self.net.cache(len(cond.vector_BD), self.layout.length, cond.vector_BD), self._begin(cond), list[Tensor]()
        for moment in moments:
            place = self.every[moment.before : moment.after]
            h = self._states(x, place, cond, EVERYTHING, cache)
            hidden = Hidden(h[:rows], h[rows:] if guided else None, sampler.guidance.on(moment))
            found.append(self.drawn(hidden, place, own, moment, draws))
            if moment.step + 1 < count:
                x = self.embed(self.grown(found[-1], moment.step + 1)).repeat(2 if guided else 1, 1, 1)
        return Tokens(torch.cat(found, 1), self.layout)

    def drawn(self, hidden: Hidden, place_n: Tensor, own: ScaleSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """(B, n, C) one scale, from noise along the guided velocity."""
        shape, plain = (len(place_n), self.layout.channels), Hidden(hidden.cond_BND)

        def velocity(x: Tensor, time: float) -> Tensor:
            t = torch.full(x.shape[:2], time, device=x.device)
            return (hidden if time >= own.guided else plain).guided(lambda h: self.head(x, t, h, place_n))

        return own.walk(draws.normal("head", moment.step, *shape), velocity, lambda i: draws.normal(f"head.{i}", moment.step, *shape))

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        if not isinstance(sampler.head or ScaleSampler(), ScaleSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: FlowAR takes 'scale_flow' alone")
        refuse_logit_settings(sampler, ScaleSampler)

"""Generation from low to high frequencies: each stage predicts all latents from a low-pass of what the stage before predicted.

Shapes: B rows, L positions of a square grid of side S, C channels, D width.  The stage s is the side of the smaller grid through which
the latents pass; stage 0 passes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.conditions import ClassCondition, Conditioned, Conditioner, stack
from tokenloom.models.parts.feeds.base import span
from tokenloom.models.parts.feeds.known_values import KnownValues
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.masked_autoencoder import MaskedAutoencoder
from tokenloom.models.parts.orders import TruncatedNormal
from tokenloom.models.parts.slots import visibility_of
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.zoo.generators.far_frequency.head import StagedDiffusion, StagedSampler, told

#: Stages of the released samplers on a grid of side 16, with masks and without.
STAGES = {"some": (0, 12, 12, 4, 5, 6, 7, 8, 9, 10, 11), "none": (0, 2, 3, 4, 5, 6, 7, 8, 9, 10)}
SIDE = 16

Masks = Literal["some", "none"]


class Stage(NamedTuple):
    """One stage of sampling: its side, states (B, L, D) of the condition and of the null condition, guidance, temperature, latents."""

    side: int
    hidden: Hidden
    temperature: float
    token_BLC: Tensor


class FrequencyGenerator(protocols.Generator):
    """A net over all positions of a low-pass, some of them masked; the head draws every position anew at each stage."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.frequency"):
        """``masks``: whether some positions of the low-pass are hidden, in training at least ``least`` of them at the highest stage, in
        sampling ever fewer.  ``stages`` of sampling (none given: the released ones, scaled to the grid)."""

        feed: KnownValues.Config
        net: MaskedAutoencoder.Config
        head: StagedDiffusion.Config
        masks: Masks = "some"
        least: float = 0.7
        stages: tuple[int, ...] = ()
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler(head=StagedSampler())

        def __post_init__(self) -> None:
            if not 0 <= self.least < 1 or any(stage < 0 for stage in self.stages) or self.stages[:1] not in ((), (0,)):
                raise ConfigError(
                    f"least={self.least}, stages={list(self.stages)}: least in [0, 1); stages begin with 0, the empty low-pass"
                )

        @property
        def axis_labels(self) -> dict[str, str]:
            return super().axis_labels | {"order": "low to high frequencies", "objective": "diffusion of every position"}

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        (rows, columns), self.config, self.layout, self.sampler = layout.grids[-1], config, layout, config.sampler
        if len(layout.grids) > 1 or layout.frames > 1 or rows != columns or layout.discrete:
            raise LayoutError(f"grids={layout.grids}: frequencies are of the latents of one square grid")
        self.side = rows
        if config.stages and max(config.stages) > rows:
            raise LayoutError(f"stages={list(config.stages)}: none may be larger than the grid's side {rows}")
        if not isinstance(config.head, StagedDiffusion.Config):
            raise ConfigError(f"head={config.head.label}: only staged_diffusion is told the stage")
        if config.net.buffer != config.feed.buffer:
            raise ConfigError(f"net.buffer={config.net.buffer}: must be feed.buffer={config.feed.buffer}")
        self.stages = config.stages or tuple(min(rows, -(-stage * rows // SIDE)) for stage in STAGES[config.masks])
        self.condition = config.condition.build(classes, config.net.width)
        self.feed = cast(KnownValues, config.feed.build(layout, config.net.width, None))
        self.net = config.net.build(layout)
        self.head = cast(StagedDiffusion, config.head.build(layout, config.net.output_width, self.feed))

    # --- training

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: that of the head at every position, given the low-pass of a stage that the whole batch shares."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        data, length = full_tokens_of(batch.tokens).float(), self.layout.length
        stage = min(self.side - 1, int(draws.host_uniform() * self.side))
        known_BL = torch.ones(data.shape[:2], dtype=torch.bool, device=data.device)
        if self.config.masks == "some":
            # The least share of masks grows with the stage.
            share = TruncatedNormal(low=self.config.least * stage / self.side).masked(float(draws.host_uniform()))
            known_BL = draws.permutation(length) >= math.ceil(length * share)
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        h = self(self.low_pass(data, stage), known_BL, conditions, draws if self.training else None)
        return {"loss": self.head.loss(told(h, stage), data, draws.fork("head")).mean()}

    def low_pass(self, token_BLC: Tensor, stage: int) -> Tensor:
        """Latents (B, L, C) averaged on a grid of this side and stretched again by cubic splines; nothing at stage 0."""
        if stage == 0:
            return torch.zeros_like(token_BLC)
        image = token_BLC.transpose(1, 2).unflatten(2, (self.side, self.side))
        small = F.interpolate(image, size=(stage, stage), mode="area")
        return F.interpolate(small, size=(self.side, self.side), mode="bicubic").flatten(2).transpose(1, 2)

    def forward(self, data: Tensor, known_BL: Tensor, conditions: Conditions | Condition, draws: Draws | None = None) -> Tensor:
        """Hidden states (B, L, D) of all positions, given a low-pass (B, L, C) at the known ones."""
        return self._states(data, known_BL, self.condition(conditions), draws)

    def _states(self, data: Tensor, known_BL: Tensor, cond: Conditioned, draws: Draws | None = None) -> Tensor:
        every = span(0, self.layout.length, data.device)
        slots = self.feed.of_known(data, known_BL, every, cond, draws)
        return self.net(slots, visibility_of(slots), cond, draws=draws)[:, self.feed.buffer :]

    # --- sampling

    @torch.no_grad()
    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition."""
        *_, last = self.walk(conditions, sampler, draws)
        return Tokens(last.token_BLC, self.layout)

    @torch.no_grad()
    def walk(
        self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws, order_BL: Tensor | None = None
    ) -> Iterator[Stage]:
        """The stages; ``order_BL`` lists the positions that are masked longest first."""
        device, rows, length = self.feed.position.device, conditions.rows, self.layout.length
        draws, own = draws.to(device, rows), cast(StagedSampler, sampler.head or StagedSampler())
        steps = len(self.stages)
        rank_BL = (draws.permutation("order", 0, length) if order_BL is None else order_BL).argsort(1)
        masked = [length * (self.config.masks == "some"), *(self._masked(i + 1) for i in range(steps))]
        moments = [Moment(i, steps, length - masked[i], length - masked[i + 1], length) for i in range(steps)]
        guided = any(sampler.guidance.on(moment) for moment in moments)
        cond = self.condition(conditions)
        cond = stack(cond, self.condition(self.condition.null(conditions))) if guided else cond
        data = torch.zeros((rows, length, self.layout.channels), device=device)
        for i, (stage, moment) in enumerate(zip(self.stages, moments)):
            known = rank_BL >= masked[i]
            copies = 2 if guided else 1
            h = self._states(data.masked_fill(~known.unsqueeze(-1), 0.0).repeat(copies, 1, 1), known.repeat(copies, 1), cond)
            h = told(h, stage)
            hidden = Hidden(h[:rows], h[rows:] if guided else None, sampler.guidance.on(moment))
            now = own.at(moment)
            token = self.head.sample(hidden, now, moment, draws)
            yield Stage(stage, hidden, now.temperature, token)
            # With masks the released sampler gives the first stage's latents on as they are.
            if i + 1 < steps:
                whole = i == 0 and self.config.masks == "some"
                data = token if whole else self.low_pass(token, self.stages[i + 1])

    def _masked(self, step: int) -> int:
        """Positions that are masked after so many steps (MaskGIT, arXiv:2202.04200)."""
        if self.config.masks == "none":
            return 0
        return math.floor(self.layout.length * math.cos(math.pi / 2 * step / len(self.stages)))

    def check_sampler(self, sampler: Sampler) -> None:
        super().check_sampler(sampler)
        self.head.check_sampler(sampler)

"""Flow matching over causally ordered sequences of images, from noisier to cleaner ones.

Shapes: B rows, S images of a sequence, L tokens of C channels, N patches of P numbers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.core.requests import labels_of
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.flows.matching import FlowSampler, between
from tokenloom.models.parts.heads.continuous import refuse_logit_settings, refuse_schedules
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.time import TimeEmbedding
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.zoo.generators.arflow.net import HybridNet


class ARFlow(protocols.Generator):
    """Velocities of several images of one class at growing times, each given the noisier ones before it (arXiv:2501.16085)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.arflow"):
        """``images`` of a training sequence; patches of ``patch`` tokens; ``outputs`` "twice": as many again, which nothing reads, as the
        released models have; guidance mixes the first ``guided`` channels (0: all)."""

        width: int
        depth: int
        heads: int
        ratio: float = 4.0
        patch: int = 1
        images: int = 5
        outputs: Literal["once", "twice"] = "once"
        guided: int = 0
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.heads, self.patch, self.images) < 1 or self.width % self.heads or self.width % 4:
                raise ConfigError(
                    f"width={self.width}, depth={self.depth}, heads={self.heads}, patch={self.patch}, images={self.images}: positive, the "
                    "width a multiple of the heads and of four"
                )

        @property
        def axis_labels(self) -> dict[str, str]:
            return {
                "order": "noisier to cleaner images",
                "net": "hybrid linear attention",
                "head": "flow matching",
                "objective": "velocity",
                "condition": self.condition.label,
            }

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> ARFlow:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: no latents of one grid, or a patch that does not divide it.
            """
            if layout.discrete or len(layout.grids) != 1 or layout.axis != "grid" or layout.frames > 1:
                raise LayoutError(f"layout {layout}: this generator models continuous tokens on one grid; use a tokenizer such as kl")
            if any(side % self.patch for side in layout.grids[0]):
                raise ConfigError(f"patch={self.patch}: does not divide the grid {layout.grids[0]}")
            return ARFlow(self, layout, classes)

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler = config, layout, config.sampler
        self.grid = layout.grids[0][0] // config.patch, layout.grids[0][1] // config.patch
        self.condition = config.condition.build(classes, config.width)
        self.enter = nn.Linear(layout.channels * config.patch**2, config.width)
        self.register_buffer("position", places(*self.grid, config.width))
        self.time = TimeEmbedding(config.width, frequencies=128, unit=1.0)
        self.net = HybridNet(config.width, config.depth, config.heads, config.ratio)
        times = 2 if config.outputs == "twice" else 1
        self.out = nn.Linear(config.width, times * layout.channels * config.patch**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x_BSLC: Tensor, t_BS: Tensor, vector_BD: Tensor, states: list[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Velocities (B, S, L, C) at times (B, S), and the states after the last image."""
        p, (rows, columns), channels = self.config.patch, self.grid, self.layout.channels
        x = x_BSLC.unflatten(2, (rows, p, columns, p)).permute(0, 1, 2, 4, 6, 3, 5).flatten(4).flatten(2, 3)
        h, after = self.net(self.enter(x) + self.get_buffer("position"), vector_BD[:, None] + self.time(t_BS), states)
        y = self.out(h).unflatten(3, (p, p, -1))[..., :channels]
        return y.unflatten(2, (rows, columns)).transpose(3, 4).flatten(2, 5), after

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: squared error of the velocities of a sequence: a row's image and others of its class among the rows at hand."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        images = self.config.images
        data = full_tokens_of(batch.tokens).float()
        chosen = companions(labels_of(batch.conditions), draws.uniform(images).to(data.device))
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        t, noise = draws.uniform(images).sort(1).values.to(data), draws.normal(images, *data.shape[1:]).to(data)
        return {"loss": self.errors(data[chosen], t, noise, self.condition(conditions).vector_BD)[1].mean()}

    def errors(self, data: Tensor, t_BS: Tensor, noise: Tensor, vector_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities and their mean squared errors (B,) of sequences (B, S, L, C)."""
        found = self(between(noise, data, t_BS[..., None].expand(noise.shape[:-1])), t_BS, vector_BD)[0]
        return found, (found - (data - noise)).square().flatten(1).mean(1)

    def check_sampler(self, sampler: Sampler) -> None:
        """Steps are those of the flow."""
        super().check_sampler(sampler)
        if not isinstance(sampler.head or FlowSampler(), FlowSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: ARFlow takes 'flow' alone")
        refuse_logit_settings(sampler, FlowSampler)
        refuse_schedules(sampler)

    @torch.no_grad()
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition: every step is one more image of its sequence, by the state that the noisier ones left."""
        own, rows, weight = cast(FlowSampler, sampler.head or FlowSampler()), conditions.rows, sampler.guidance.on(Moment(0, 1, 0, 1, 1))
        vector = self.condition(conditions).vector_BD
        if weight:
            vector = torch.cat([vector, self.condition(self.condition.null(conditions)).vector_BD])
        states: list[Tensor | None] | None = None
        guided = self.config.guided or self.layout.channels

        def velocity(x: Tensor, t: float) -> Tensor:
            nonlocal states
            both = torch.cat([x, x]) if weight else x
            v, states = self(both[:, None], x.new_full((len(both), 1), t), vector, states)
            given, null = v[:rows, 0], v[rows:, 0] if weight else None
            mixed = guide(given[..., :guided], None if null is None else null[..., :guided], weight)
            return torch.cat([mixed, given[..., guided:]], -1)

        draws, shape = draws.to(vector.device, rows), (self.layout.length, self.layout.channels)
        start = draws.normal("head", 0, *shape).to(vector)
        return Tokens(own.walk(start, velocity, lambda i: draws.normal("walk", i, *shape).to(vector)), self.layout)


def companions(label_B: Tensor | None, u_BS: Tensor) -> Tensor:
    """(B, S) rows of the class of each row, itself among them, drawn by uniform numbers; the last is the row itself."""
    rows, images = u_BS.shape
    itself = torch.arange(rows, device=u_BS.device)
    if label_B is None:
        return itself[:, None].expand(-1, images)
    alike = label_B[:, None] == label_B
    order = (~alike).to(torch.uint8).argsort(dim=1, stable=True)
    index = (u_BS * alike.sum(1, keepdim=True)).long()
    return torch.cat([order.gather(1, index)[:, :-1], itself[:, None]], 1)


def places(rows: int, columns: int, width: int) -> Tensor:
    """(1, N, D) sines and cosines of the column, then of the row (arXiv:2111.06377)."""
    half = width // 4
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [x.flatten()[:, None] * rate for x in (column, row)]
    return torch.cat([f for angle in angles for f in (angle.sin(), angle.cos())], 1).float()[None]

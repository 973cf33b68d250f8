"""A deep flow and shallow ones over the latents of an image.

Shapes: B rows, L tokens, N positions of patches of P numbers, C channels, T slots of a condition, W their features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.flows.causal import CausalFlow, Grid, Reversal
from tokenloom.models.parts.heads.continuous import refuse_logit_settings, refuse_schedules
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Constant, Moment, Sampler


@dataclass(frozen=True, kw_only=True)
class InverseSampler(HeadSampler, tag="head_sampler.inverse"):
    """How flows are inverted: attention's ``temperature``, or ``chunk`` positions at once by ``iterations`` (``Reversal``); whether all
    flows that see the condition are guided or the ``top`` one alone; whether noise of training is taken away at the end."""

    temperature: float = 1.0
    chunk: int = 0
    iterations: int = 0
    guided: Literal["all", "top"] = "all"
    denoise: Literal["score", "none"] = "score"

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"sample.head.temperature={self.temperature}: must be positive")

    def how(self, weight: float) -> Reversal:
        """With guidance of this weight."""
        return Reversal(weight, self.temperature, self.chunk, self.iterations)


class STARFlow(protocols.Generator):
    """``p(x) = N(f(x); 0, 1) |det f'(x)|`` of latents, f being shallow flows and a deep one on top (arXiv:2506.06276)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.starflow"):
        """``flows`` from the data to the prior (None: the identity); ``top``: the direction of the topmost, which alternate; ``reversal``
        of the whole sequence or within each frame; ``local``: the flows below the topmost see one frame.  ``noise`` is added in
        training; ``norm`` weighs the mean squares of what enters the flows; ``reach``: side of the grid of rotary positions (0: the
        layout's)."""

        flows: tuple[CausalFlow.Config | None, ...]
        features: int = 0
        patch: int = 1
        top: Literal["forwards", "backwards"] = "backwards"
        reversal: Literal["all", "frames"] = "all"
        local: Literal["all", "frame"] = "all"
        noise: float = 0.3
        norm: float = 1e-4
        reach: int = 0
        condition: Conditioner.Config | None = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def __post_init__(self) -> None:
            if not self.flows or self.flows[-1] is None:
                raise ConfigError("flows: give at least one, and no identity as the topmost")
            if self.patch < 1:
                raise ConfigError(f"patch={self.patch}: must be at least 1")

        @property
        def axis_labels(self) -> dict[str, str]:
            condition = self.condition.label if self.condition else "none"
            return {"order": "both raster ways", "net": "transformers", "head": "affine flow", "objective": "NLL", "condition": condition}

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> STARFlow:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: no latents of one grid, or a patch that does not divide it.
            """
            if layout.discrete or len(layout.grids) != 1 or layout.axis != "grid":
                raise LayoutError(f"layout {layout}: this generator models continuous tokens on one grid; use a tokenizer such as kl")
            if any(side % self.patch for side in layout.grids[0]):
                raise ConfigError(f"patch={self.patch}: does not divide the grid {layout.grids[0]}")
            return STARFlow(self, layout, classes)

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler = config, layout, config.sampler
        self.condition = config.condition.build(classes, config.features) if config.condition is not None else None
        channels, last = layout.channels * config.patch**2, len(config.flows) - 1
        backwards = [(last - i) % 2 == (config.top == "forwards") for i in range(last + 1)]
        self.flows = nn.ModuleList(
            nn.Identity() if flow is None else flow.build(channels, config.reversal if back else "no")
            for flow, back in zip(config.flows, backwards)
        )
        frames = layout.frames if layout.frames > 1 else 0
        self.grid = Grid(frames, *(side // config.patch for side in layout.grids[0]))
        self.reach = config.reach or self.grid.rows

    def patches(self, token_BLC: Tensor, grid: Grid) -> Tensor:
        """(B, N, P), positions of a patch before their channels."""
        p = self.config.patch
        x = token_BLC.unflatten(1, (-1, grid.rows, p, grid.columns, p))
        return x.transpose(3, 4).flatten(4).flatten(1, 3)

    def tokens(self, x_BNP: Tensor, grid: Grid) -> Tensor:
        """Inverse of ``patches``."""
        p = self.config.patch
        return x_BNP.unflatten(2, (p, p, -1)).unflatten(1, (-1, grid.rows, grid.columns)).transpose(3, 4).flatten(1, 5)

    def forward(self, x_BNP: Tensor, text_BTW: Tensor | None, grid: Grid | None = None) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """What enters the flows and, last, z, each (B, N, P); log-determinants of all values, of a flow's own order; hidden states of the
        condition on top."""
        grid, x, found, logs, text = grid or self.grid, x_BNP, [x_BNP], [], None
        for flow, own in zip(self.flows, self._grids(grid)):
            if isinstance(flow, CausalFlow):
                y, log, text = flow(self._apart(x, own, grid), own, text_BTW, self.reach)
                x, log = y.reshape(x.shape), log.reshape(x.shape)
            else:
                log = x.new_zeros(len(x))
            found.append(x)
            logs.append(log)
        return found, logs, text

    def inverse(
        self, z_BNP: Tensor, text: Tensor | None, null: Tensor | None, how: Reversal, guided: str = "all", grid: Grid | None = None
    ) -> list[Tensor]:
        """z and then what each flow from the topmost on makes of it: the last is x."""
        grid, x, found = grid or self.grid, z_BNP, [z_BNP]
        for index, (flow, own) in enumerate(reversed(list(zip(self.flows, self._grids(grid))))):
            if isinstance(flow, CausalFlow):
                other = null if index == 0 or guided == "all" else None
                x = flow.inverse(self._apart(x, own, grid), own, text, other, self.reach, how).reshape(x.shape)
            found.append(x)
        return found

    def _grids(self, grid: Grid) -> list[Grid]:
        """The grid that each flow sees."""
        if self.config.local == "all" or not grid.frames:
            return [grid] * len(self.flows)
        return [grid._replace(frames=1)] * (len(self.flows) - 1) + [grid]

    @staticmethod
    def _apart(x: Tensor, own: Grid, grid: Grid) -> Tensor:
        return x if own == grid else x.reshape(-1, own.length, x.shape[-1])

    def nll(self, outputs: list[Tensor], logs: list[Tensor]) -> Tensor:
        """(B,) negative log-density, a value, without the constant log(2 pi) / 2 (equation 4)."""
        return 0.5 * outputs[-1].square().flatten(1).mean(1) - torch.stack([log.reshape(len(log), -1).mean(1) for log in logs]).sum(0)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: ``nll`` of latents with noise, and the weighted squares of what enters the flows."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        x = full_tokens_of(batch.tokens).float()
        text = None
        if self.condition is not None:
            text = self.condition(self.condition.drop(batch.conditions, draws if self.training else None)).prefix_BPD
        x = x + self.config.noise * draws.normal(*x.shape[1:]).to(x)
        outputs, logs, _ = self(self.patches(x, self.grid), text)
        nll = self.nll(outputs, logs).mean()
        return {"loss": nll + self.config.norm * self.squares(outputs), "nll": nll.detach()}

    def squares(self, outputs: list[Tensor]) -> Tensor:
        """Sum of the mean squares of what enters the flows."""
        return torch.stack([x.square().mean() for x in outputs[:-1]]).sum()

    def log_prob(self, batch: Batch) -> Tensor:
        """(B,) nats of the latents' density as they are, without noise."""
        assert batch.tokens is not None
        x = self.patches(full_tokens_of(batch.tokens), self.grid)
        outputs, logs, _ = self(x, self._prefix(batch.conditions))
        return -(self.nll(outputs, logs) + 0.5 * math.log(2 * math.pi)) * x[0].numel()

    def _prefix(self, conditions: Conditions) -> Tensor | None:
        return None if self.condition is None else self.condition(conditions).prefix_BPD

    def check_sampler(self, sampler: Sampler) -> None:
        """Guidance and temperature are one number each; how flows are inverted stands under ``head``."""
        super().check_sampler(sampler)
        refuse_schedules(sampler)
        refuse_logit_settings(replace(sampler, temperature=Constant(value=1.0)), InverseSampler)
        if not isinstance(sampler.head or InverseSampler(), InverseSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: STARFlow takes 'inverse' alone")

    @torch.no_grad()
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition; guidance has the weight of the first moment."""
        own, weight = cast(InverseSampler, sampler.head or InverseSampler()), sampler.guidance.on(Moment(0, 1, 0, 1, 1))
        text = self._prefix(conditions)
        null = self._prefix(self.condition.null(conditions)) if weight and self.condition is not None else None
        out = cast(CausalFlow, self.flows[-1]).out.weight
        z = draws.to(out.device, conditions.rows).normal("latent", 0, self.grid.length, self.layout.channels * self.config.patch**2).to(out)
        z = sampler.temperature.on(Moment(0, 1, 0, 1, 1)) * z
        x = self.inverse(z, text, null, own.how(weight), own.guided)[-1]
        if own.denoise == "score" and self.config.noise:
            x = self.denoised(x, text)
        return Tokens(self.tokens(x, self.grid), self.layout)

    def denoised(self, x_BNP: Tensor, text: Tensor | None, grid: Grid | None = None) -> Tensor:
        """Tweedie's mean ``x + noise^2 d log p / dx`` (section 3.3)."""
        with torch.enable_grad():
            x = x_BNP.detach().requires_grad_()
            outputs, logs, _ = self(x, text, grid)
            (gradient,) = torch.autograd.grad(self.nll(outputs, logs).sum() * x[0].numel(), x)
        return (x - self.config.noise**2 * gradient).detach()

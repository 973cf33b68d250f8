"""Autoregression over blocks, each drawn by a diffusion that is given the clean blocks before it.

Shapes: B rows, L positions, T blocks of n positions, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, LayoutError, TokenLayout, Tokens, full_tokens_of
from tokenloom.models.parts.conditions import ClassCondition, Conditioner
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion
from tokenloom.models.parts.heads.continuous import refuse_logit_settings
from tokenloom.models.parts.heads.hidden import guide
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler
from tokenloom.models.sampling.solvers import Solver, solve, times_of
from tokenloom.models.zoo.generators.acdit.net import SkipCausal, rotary


@dataclass(frozen=True, kw_only=True)
class SolverSampler(HeadSampler, tag="head_sampler.solver"):
    """``steps`` of a deterministic ``solver`` for each block; predicted data is kept within ``clip`` (0: it is not)."""

    steps: int = 25
    solver: Solver = "dpm"
    clip: float = 0.0

    def __post_init__(self) -> None:
        times_of(self.solver, self.steps)


class ACDiT(protocols.Generator):
    """``p(x) = prod_i p(block i | clean blocks before it)``, each factor a diffusion (arXiv:2412.07720)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.acdit"):
        """``blocks`` of the tokens: squares of the grid, or ``runs`` of positions in raster order; ``split``: shares of a head's channels
        for the axes of positions (None: alike for rows and columns; with frames 2 for time and 3 for each of the others)."""

        net: Transformer.Config
        blocks: int = 4
        shape: Literal["squares", "runs"] = "squares"
        split: tuple[int, ...] | None = None
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def __post_init__(self) -> None:
            if self.blocks < 1:
                raise ConfigError(f"blocks={self.blocks}: must be at least 1")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {
                "order": f"{self.blocks} blocks",
                "feed": "clean and noisy blocks",
                "net": f"{self.net.label}, skip-causal",
                "head": "diffusion",
                "objective": "diffusion loss",
                "condition": self.condition.label,
            }

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> ACDiT:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: no latents of one grid, or blocks that do not cut it.
            """
            if layout.discrete or len(layout.grids) != 1 or layout.axis != "grid":
                raise LayoutError(f"layout {layout}: this generator models continuous tokens on one grid; use a tokenizer such as kl")
            return ACDiT(self, layout, classes)

    def __init__(self, config: Config, layout: TokenLayout, classes: int) -> None:
        super().__init__()
        self.config, self.layout, self.sampler = config, layout, config.sampler
        self.process = GaussianDiffusion("linear", "eps", "fixed")
        self.condition = config.condition.build(classes, config.net.width)
        sequence = in_blocks(layout, config.blocks, config.shape)
        self.register_buffer("sequence", sequence, persistent=False)
        frames = layout.frames > 1
        axes = (layout.positions[:, (0, 2, 3)] if frames else layout.positions[:, (2, 3)]).T[:, sequence]
        lengths = (*((layout.frames,) if frames else ()), *layout.grids[0])
        split = config.split or ((2, 3, 3) if frames else (1, 1))
        rotations = rotary(axes, lengths, split, config.net.attention.head_width or config.net.width // config.net.heads)
        self.net = SkipCausal(config.net, layout, layout.channels, rotations, config.blocks)

    def ordered(self, token_BLC: Tensor) -> Tensor:
        """Tokens of the layout in block order."""
        return token_BLC[:, self.get_buffer("sequence")]

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: squared error of the noise that is predicted, at one time for each block."""
        assert batch.tokens is not None
        self.layout.check(batch.tokens.layout)
        clean = self.ordered(full_tokens_of(batch.tokens)).float()
        conditions = self.condition.drop(batch.conditions, draws if self.training else None)
        t_BT = (draws.uniform(self.config.blocks) * TIMES).long()
        noise = draws.normal(*clean.shape[1:]).to(clean)
        return {"loss": self.errors(clean, t_BT, noise, self.condition(conditions).vector_BD).mean()}

    def errors(self, clean_BLC: Tensor, t_BT: Tensor, noise_BLC: Tensor, vector_BD: Tensor) -> Tensor:
        """(B, L) mean squared errors of the predicted noise of all blocks, in block order."""
        t_BL = t_BT.repeat_interleave(self.net.size, 1)
        noisy = self.process.noised(clean_BLC, noise_BLC, t_BL)
        output = self.net(clean_BLC, noisy, t_BT, vector_BD)
        return self.process.losses(output, clean_BLC, noise_BLC, noisy, t_BL)["mse"]

    def check_sampler(self, sampler: Sampler) -> None:
        """Steps are those of the solver."""
        super().check_sampler(sampler)
        if not isinstance(sampler.head or SolverSampler(), SolverSampler):
            raise ConfigError(f"sample.head={sampler.head!r}: ACDiT takes 'solver' alone")
        refuse_logit_settings(sampler, SolverSampler)

    @torch.no_grad()
    def generate(self, conditions: Conditions, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition, block after block; guidance mixes predicted noise."""
        own = cast(SolverSampler, sampler.head or SolverSampler())
        vector, rows = self.condition(conditions).vector_BD, conditions.rows
        blocks, draws = self.config.blocks, draws.to(vector.device, rows)
        # Guidance that sets in later still needs the null rows' caches from the start.
        guided = any(sampler.guidance.on(self._moment(i)) for i in range(blocks))
        if guided:
            vector = torch.cat([vector, self.condition(self.condition.null(conditions)).vector_BD])
        cache, found = self.net.cache(len(vector)), cast("list[Tensor]", [])
        for block in range(blocks):
            if found:
                self.net.read(torch.cat([found[-1]] * (1 + guided)), block - 1, cache)
            weight = sampler.guidance.on(self._moment(block))

            def output(x: Tensor, t: int) -> Tensor:
                both = torch.cat([x] * (1 + guided))
                given = self.net.denoise(both, torch.full((len(both),), t, device=x.device), vector, block, cache)  # noqa: B023
                return guide(given[:rows], given[rows:] if guided else None, weight)  # noqa: B023

            x = draws.normal("head", block, self.net.size, self.layout.channels).to(vector)
            found.append(solve(self.process, own.solver, own.steps, x, output, own.clip))
        token = torch.cat(found, 1)
        return Tokens(torch.empty_like(token).index_copy_(1, self.get_buffer("sequence"), token), self.layout)

    def _moment(self, block: int) -> Moment:
        size, blocks = self.net.size, self.config.blocks
        return Moment(block, blocks, block * size, (block + 1) * size, blocks * size)


def in_blocks(layout: TokenLayout, blocks: int, shape: Literal["squares", "runs"]) -> Tensor:
    """(L,) layout positions, block after block.

    Raises:
        ConfigError: so many blocks do not cut the grid.
    """
    size, position = layout.length // blocks, layout.coordinates("index")
    if layout.length % blocks:
        raise ConfigError(f"blocks={blocks}: must divide the {layout.length} tokens")
    if shape == "runs":
        return position
    (rows, columns), side = layout.grids[0], math.isqrt(size)
    if side * side != size or rows % side or columns % side or layout.frames > 1:
        raise ConfigError(f"blocks={blocks}: {size} tokens each are no squares that tile {rows}x{columns}; use shape: runs")
    return position.view(rows // side, side, columns // side, side).transpose(1, 2).flatten()

"""Residual quantization: each stage codes what the earlier ones left over (RQ-VAE, arXiv:2203.01941; SoundStream, arXiv:2107.03312).

Shapes: B rows, C channels, H W grid, L = H W, Q codebooks (stages times those of a stage).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer, joined
from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.fsq import FSQ, Clamp
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight


@dataclass(frozen=True, kw_only=True)
class Each(configs.Config, tag="residual.each"):
    """Every stage passes its own gradient, and they add up."""


class Residual(Quantizer):
    """The same kind of quantizer over and over, each stage with its own codebook; the code is the sum of the stages' codes.

    A stage whose codebook starts from data does so one step after the stage before it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.residual"):
        """``gradient`` is that of the sum, or each stage's own.

        ``shrink``, one a channel, makes stage i work on the residual times ``shrink ** i``; ``limit`` bounds the input smoothly to ±limit.
        """

        stage: Quantizer.Config
        stages: int = 4
        gradient: Straight | Rotation | Each = Straight()
        shrink: tuple[float, ...] = ()
        limit: tuple[float, ...] = ()

        def __post_init__(self) -> None:
            taken, given = self.stage.channels()
            if self.stages < 1 or taken != given:
                raise ConfigError(f"quantizer.stages={self.stages}: at least 1, of a quantizer that gives as many channels as it takes")
            for name, values in (("shrink", self.shrink), ("limit", self.limit)):
                if values and (len(values) != taken or min(values) <= 0):
                    raise ConfigError(f"quantizer.{name}={list(values)}: give {taken} positive numbers, or none")

        def channels(self) -> tuple[int, int]:
            return self.stage.channels()

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            inner = self.stage.layout(grid)
            if not inner.discrete or len(inner.grids) > 1:
                raise ConfigError(f"quantizer.stage={type(self.stage).__qualname__}: a stage has ids on one grid")
            return replace(inner, codebooks=self.stages * inner.codebooks)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.books = config.layout(grid).codebooks // config.stages
        self.stages = nn.ModuleList(config.stage.build(grid) for _ in range(config.stages))

    @property
    def ready(self) -> bool:
        return all(cast(Quantizer, stage).ready for stage in self.stages)

    def _factor(self, stage: int, z_BCHW: Tensor) -> Tensor:
        """By which the residual is divided before a stage, (C, 1, 1) or a scalar."""
        return (z_BCHW.new_tensor(self.config.shrink) if self.config.shrink else z_BCHW.new_ones(1))[:, None, None] ** -stage

    def _enter(self, z_BCHW: Tensor) -> Tensor:
        z_BCHW = exact(z_BCHW)
        if not self.config.limit:
            return z_BCHW
        limit = z_BCHW.new_tensor(self.config.limit)[:, None, None]
        return limit * torch.tanh(z_BCHW / limit)

    def run(self, z_BCHW: Tensor, draws: Draws | None = None) -> list[Quantized]:
        """What each stage says of what is left over, in units of the input."""
        rest, found, ready = self._enter(z_BCHW), [], True
        for i, module in enumerate(self.stages):
            stage, factor = cast(Quantizer, module), self._factor(i, rest)
            quantized = stage(rest / factor, draws.fork(f"stage{i}") if draws is not None and ready else None)
            quantized.z = quantized.z * factor
            rest = rest - quantized.z.detach()
            ready = ready and stage.ready
            found.append(quantized)
        return found

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; the losses of the stages are added."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            found = self.run(z_BCHW, draws)
            total = torch.stack([q.z for q in found]).sum(0)
            if not isinstance(self.config.gradient, Each):
                channels_last = (t.permute(0, 2, 3, 1) for t in (self._enter(z_BCHW), total))
                total = self.config.gradient(*channels_last).permute(0, 3, 1, 2)
            losses = {name: torch.stack([q.losses[name] for q in found]).sum() for name in found[0].losses}
        usage = torch.cat([q.stats["usage"] for q in found])
        return Quantized(total, joined([q.ids for q in found]), losses, {"usage": usage})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L, Q), the first stage first."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return joined([q.ids for q in self.run(z_BCHW)])

    def partial(self, ids_BLQ: Tensor) -> list[Tensor]:
        """The sum of the codes (B, C, H, W) after each stage."""
        sums: list[Tensor] = []
        for i, (module, ids) in enumerate(zip(self.stages, ids_BLQ.split(self.books, -1))):
            z_BCHW = cast(Quantizer, module).lookup(ids if self.books > 1 else ids[..., 0])
            z_BCHW = z_BCHW * self._factor(i, z_BCHW)
            sums.append(z_BCHW if i == 0 else sums[-1] + z_BCHW)
        return sums

    def lookup(self, ids_BLQ: Tensor) -> Tensor:
        """The sum of all stages' codes (B, C, H, W)."""
        return self.partial(ids_BLQ)[-1]

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Each stage's update; metrics by codebook."""
        found = [cast(Quantizer, stage).after_step(draws) for stage in self.stages]
        return {f"{name}_book{i}": value for i, metrics in enumerate(found) for name, value in metrics.items()}


def residual_fsq(levels: tuple[int, ...], stages: int) -> Residual.Config:
    """Residual finite scalar quantization: stage i has levels ``levels ** i`` times finer (of vector-quantize-pytorch)."""
    return Residual.Config(
        stage=FSQ.Config(levels=levels, bound=Clamp()),
        stages=stages,
        gradient=Each(),
        shrink=tuple(float(n) for n in levels),
        limit=tuple(1 + 1 / (n - 1) for n in levels),
    )

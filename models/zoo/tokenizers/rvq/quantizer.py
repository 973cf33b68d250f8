"""Residual quantization: each stage codes what the earlier ones left over (RQ-VAE, arXiv:2203.01941; SoundStream, arXiv:2107.03312).

Shapes: B rows, C channels, H W grid, L = H W, Q codebooks (stages times those of a stage).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer, joined
from tokenloom.models.parts.quantizers.codebook import EMA, exact
from tokenloom.models.parts.quantizers.fsq import FSQ, Clamp
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.vq import VQ


@dataclass(frozen=True, kw_only=True)
class Each(configs.Config, tag="residual.each"):
    """Every stage passes its own gradient, and they add up."""


@dataclass(frozen=True, kw_only=True)
class Dropout(configs.Config, tag="residual.dropout"):
    """In training only the first stages code, as many for the whole batch as a draw says (SoundStream, arXiv:2107.03312, section III.C).

    The last one is any from stage ``first``, counted from 0, or the next that completes a group of ``multiple`` stages.
    """

    first: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.first < 0 or self.multiple < 1:
            raise ConfigError(f"dropout.first={self.first}, multiple={self.multiple}: first not negative, multiple at least 1")

    def kept(self, stages: int, u: float) -> int:
        """How many of the stages code, by a uniform draw."""
        return self.completed(self.first + int(u * (stages - self.first)), stages)

    def completed(self, last: int, stages: int) -> int:
        """How many of the stages code if the ``last`` one, counted from 0, was drawn."""
        return min(-(-(last + 1) // self.multiple) * self.multiple, stages)


class Residual(Quantizer):
    """The same kind of quantizer over and over, each stage with its own codebook; the code is the sum of the stages' codes.

    A stage whose codebook starts from data does so one step after the stage before it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.residual"):
        """``gradient`` is that of the sum, or each stage's own.

        ``shrink``, one a channel, makes stage i work on the residual times ``shrink ** i``; ``limit`` bounds the input smoothly to ±limit.
        ``shared`` books are one codebook for all stages (RQ-VAE, arXiv:2203.01941, section 3.1), whose averages decay once a stage.
        """

        stage: Quantizer.Config
        stages: int = 4
        gradient: Straight | Rotation | Each = Straight()
        shrink: tuple[float, ...] = ()
        limit: tuple[float, ...] = ()
        books: Added[Literal["separate", "shared"]] = "separate"
        dropout: Added[Dropout | None] = None

        def __post_init__(self) -> None:
            taken, given = self.stage.channels()
            if self.stages < 1 or taken != given:
                raise ConfigError(f"quantizer.stages={self.stages}: at least 1, of a quantizer that gives as many channels as it takes")
            for name, values in (("shrink", self.shrink), ("limit", self.limit)):
                if values and (len(values) != taken or min(values) <= 0):
                    raise ConfigError(f"quantizer.{name}={list(values)}: give {taken} positive numbers, or none")
            if self.books == "shared" and not isinstance(self.stage, VQ.Config):
                raise ConfigError(f"quantizer.books='shared', stage={type(self.stage).__qualname__}: stages without a codebook share none")
            if self.dropout is not None and self.dropout.first >= self.stages:
                raise ConfigError(f"quantizer.dropout.first={self.dropout.first}: there are {self.stages} stages, counted from 0")

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
        self.shared = config.books == "shared"
        made = [_shared(config, grid)] if self.shared else [config.stage.build(grid) for _ in range(config.stages)]
        self.stages = nn.ModuleList(made)

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
        kept = self.kept(draws)
        for i in range(self.config.stages):
            stage, factor = self._stage(i), self._factor(i, rest)
            own = draws.fork(f"stage{i}") if draws is not None and ready and i < kept else None
            quantized = stage(rest / factor, own, *([i] if self.shared else []))
            quantized.z = quantized.z * factor
            if i >= kept:  # coded all the same, so that every parameter has a gradient, and counts for nothing
                quantized.z, quantized.ids = quantized.z * 0, torch.full_like(quantized.ids, -1)
                quantized.losses = {name: loss * 0 for name, loss in quantized.losses.items()}
                quantized.stats["usage"] = torch.zeros_like(quantized.stats["usage"])
            rest = rest - quantized.z.detach()
            ready = ready and stage.ready
            found.append(quantized)
        return found

    def _stage(self, stage: int) -> Quantizer:
        return cast(Quantizer, self.stages[0 if self.shared else stage])

    def kept(self, draws: Draws | None) -> int:
        """How many stages code."""
        if self.config.dropout is None or draws is None or not self.training:
            return self.config.stages
        return self.config.dropout.kept(self.config.stages, float(draws.fork("stages").host_uniform(1)))

    def given(self, z_BCHW: Tensor, draws: Draws) -> Tensor:
        return torch.stack([q.z for q in self.run(z_BCHW)[: self.kept(draws)]]).sum(0)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize; the losses of the stages are added.  Ids of stages that are dropped are -1, here as in ``lookup``."""
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
        for i, ids in enumerate(ids_BLQ.split(self.books, -1)):
            z_BCHW = self._stage(i).lookup((ids if self.books > 1 else ids[..., 0]).clamp_min(0))
            z_BCHW = z_BCHW * self._factor(i, z_BCHW) * (ids[..., 0] >= 0).view(len(ids), 1, *self.grid)
            sums.append(z_BCHW if i == 0 else sums[-1] + z_BCHW)
        return sums

    def lookup(self, ids_BLQ: Tensor) -> Tensor:
        """The sum of all stages' codes (B, C, H, W)."""
        return self.partial(ids_BLQ)[-1]

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Each stage's update; metrics by codebook."""
        if self.shared:
            return self._stage(0).after_step(draws)
        found = [cast(Quantizer, stage).after_step(draws) for stage in self.stages]
        return {f"{name}_book{i}": value for i, metrics in enumerate(found) for name, value in metrics.items()}


def _shared(config: Residual.Config, grid: tuple[int, int]) -> VQ:
    """The one quantizer of all stages: its averages end where they would after an update a stage, the last stage's decayed least."""
    assert isinstance(config.stage, VQ.Config)
    stage, count = config.stage, config.stages
    groups, weights = tuple(f"book{i}" for i in range(count)), (1.0,) * count
    if isinstance(update := stage.codebook.update, EMA):
        share = (1 - update.decay) / (1 - update.decay**count)
        weights = tuple(share * update.decay ** (count - 1 - i) for i in range(count))
        stage = replace(stage, codebook=replace(stage.codebook, update=replace(update, decay=update.decay**count)))
    return VQ(stage, grid, groups, weights)


def residual_fsq(levels: tuple[int, ...], stages: int) -> Residual.Config:
    """Residual finite scalar quantization: stage i has levels ``levels ** i`` times finer (of vector-quantize-pytorch)."""
    return Residual.Config(
        stage=FSQ.Config(levels=levels, bound=Clamp()),
        stages=stages,
        gradient=Each(),
        shrink=tuple(float(n) for n in levels),
        limit=tuple(1 + 1 / (n - 1) for n in levels),
    )

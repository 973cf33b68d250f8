"""Quantization at any grid size, without residuals (FlexVAR, arXiv:2502.20313, section 3.2).

Each scale codes the latent itself, resized to it; the last one is decoded.  No scale depends on another, so grids may be chosen
after training.  Shapes: B rows, C channels, H W latent grid, h w a scale, L tokens of all scales, small to large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned, counts, exact
from tokenloom.models.parts.quantizers.grids import Grid, growing, grown, last, pair


class Flexible(Quantizer):
    """One codebook for all sizes; with the cosine metric vectors and codes lie on the unit sphere, as published."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.flexible", label="multi-scale, any scales"):
        """``scales`` are those of the tokens; a training step also codes the latent at one size drawn from ``trained`` (empty: all
        below the grid), which is decoded and compared with the image at that size."""

        codebook: Codebook.Config
        scales: tuple[Grid, ...]
        trained: tuple[Grid, ...] = ()
        beta: float = 0.25

        def __post_init__(self) -> None:
            growing(self.scales)
            if any(min(pair(size)) < 1 for size in self.trained) or self.beta < 0:
                raise ConfigError(f"quantizer.trained={list(self.trained)}, beta={self.beta}: sizes positive, beta not negative")

        @property
        def dim(self) -> int:
            """Channels of the latents."""
            return self.codebook.dim

        def channels(self) -> tuple[int, int]:
            return self.dim, self.dim

        def at(self, grid: tuple[int, int]) -> Flexible.Config:
            return replace(self, scales=grown(self.scales, grid))

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=last(self.scales, grid), vocabulary=self.codebook.codes)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.scales = config, config.scales
        self.sizes = config.trained or tuple(range(1, min(pair(config.scales[-1])))) or (1,)
        self.codebook = config.codebook.build(("full", "drawn"), (1.0, 1.0))

    def _at(self, z_BCHW: Tensor, grid: Grid) -> Tensor:
        """The latent at a grid's size as vectors (B, h w, C)."""
        z_BChw = z_BCHW if z_BCHW.shape[2:] == pair(grid) else F.interpolate(z_BCHW, size=pair(grid), mode="area")
        return self.codebook.placed(z_BChw.flatten(2).transpose(1, 2))

    def _nearest(self, z_BPC: Tensor) -> Tensor:
        return self.codebook.nearest(z_BPC.flatten(0, 1)).view(z_BPC.shape[:2])

    def _vectors(self, ids_BP: Tensor, grid: Grid) -> Tensor:
        """Code vectors of one grid, (B, C, h, w)."""
        weight = self.codebook.placed(self.codebook.weight)
        return F.embedding(ids_BP, weight).transpose(1, 2).unflatten(2, pair(grid))

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize the latent as it is; in training with ``draws`` also at the step's size, whose latents are a view of the same image."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BCHW = exact(z_BCHW)
            grids: list[Grid] = [(z_BCHW.shape[2], z_BCHW.shape[3])]
            if self.training and draws is not None:
                grids.append(self.sizes[int(float(draws.fork("size").host_uniform(1)) * len(self.sizes))])
            groups, commitments, codebooks, straight = [], [], [], []
            for grid in grids:
                z_BPC = self._at(z_BCHW, grid)
                ids_BP = self._nearest(z_BPC)
                q_BPC = self._vectors(ids_BP, grid).flatten(2).transpose(1, 2).to(z_BPC.dtype)
                groups.append((z_BPC, ids_BP))
                commitments.append(F.mse_loss(z_BPC, q_BPC.detach()))
                codebooks.append(F.mse_loss(q_BPC, z_BPC.detach()))
                straight.append((z_BPC + (q_BPC - z_BPC).detach()).transpose(1, 2).unflatten(2, pair(grid)))
            losses = {"commitment": self.config.beta * torch.stack(commitments).mean()}
            if isinstance(self.config.codebook.update, Learned):
                losses["codebook"] = self.config.codebook.update.weight * torch.stack(codebooks).mean()
            if len(groups) == 2:
                self.codebook.observe(groups, draws)
            ids = self.split(self.encode(z_BCHW))
        usage = counts(list(ids), self.config.codebook.codes)
        return Quantized(straight[0], torch.cat(ids, 1), losses, {"usage": usage}, dict(zip(["drawn"], straight[1:])))

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor, scales: Sequence[Grid] | None = None) -> Tensor:
        """Ids (B, L) of these grids (default: the layout's); the latent may have any size itself."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BCHW = exact(z_BCHW)
            return torch.cat([self._nearest(self._at(z_BCHW, grid)) for grid in scales or self.scales], 1)

    def split(self, ids_BL: Tensor, scales: Sequence[Grid] | None = None) -> tuple[Tensor, ...]:
        """The ids of each grid, (B, h w)."""
        return ids_BL.split([pair(grid)[0] * pair(grid)[1] for grid in scales or self.scales], dim=1)

    def partial(self, ids_BL: Tensor, scales: Sequence[Grid] | None = None) -> list[Tensor]:
        """The latents (B, C, h, w) of each scale: every one is a whole image."""
        scales = scales or self.scales
        return [self._vectors(ids, grid) for ids, grid in zip(self.split(ids_BL, scales), scales)]

    def lookup(self, ids_BL: Tensor, scales: Sequence[Grid] | None = None) -> Tensor:
        """The latents (B, C, H, W) of the last scale."""
        return self.partial(ids_BL, scales)[-1]

    def next_inputs(self, ids_BL: Tensor, scales: Sequence[Grid] | None = None) -> Tensor:
        """Teacher forcing: what each scale but the first is given, (B, L - first scale, C): the one before, resized to it."""
        scales = scales or self.scales
        inputs = [self._resized(z, grid) for z, grid in zip(self.partial(ids_BL, scales), scales[1:])]
        return torch.cat(inputs, 1) if inputs else self.codebook.weight.new_zeros(len(ids_BL), 0, self.config.dim)

    def _resized(self, z_BChw: Tensor, grid: Grid) -> Tensor:
        """A scale's code vectors as the input of a grid, (B, P, C)."""
        return F.interpolate(z_BChw, size=pair(grid), mode="bicubic").flatten(2).transpose(1, 2)

    def start(self, rows: int) -> Tensor:
        """The latents before the first scale: zeros (B, C, H, W)."""
        return self.codebook.weight.new_zeros(rows, self.config.dim, *pair(self.scales[-1]))

    def accumulate(self, f_hat_BCHW: Tensor, scale: int, ids_BP: Tensor, scales: Sequence[Grid] | None = None) -> tuple[Tensor, Tensor]:
        """Decoding one scale at a time: its latents at the last grid's size, nothing added, and the next scale's input (B, P', C)."""
        scales = scales or self.scales
        z_BChw, last = self._vectors(ids_BP, scales[scale]), scale == len(scales) - 1
        if last:
            return z_BChw, z_BChw.flatten(2).transpose(1, 2)
        return F.interpolate(z_BChw, size=pair(scales[-1]), mode="bicubic"), self._resized(z_BChw, scales[scale + 1])

    @property
    def ready(self) -> bool:
        return self.codebook.ready

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Codebook update once an optimizer step; use and perplexity at the full and at the drawn sizes."""
        return self.codebook.after_step(draws)

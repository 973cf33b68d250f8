"""One level: patches of an image from a condition, each given a condition of its own for the level below.

Shapes: B images, L patches, h w their grid, P numbers of a patch, K conditions, D width of this level, E of the conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.mlp import GELU, SwiGLU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.visibility import EVERYTHING, Causal
from tokenloom.models.zoo.densities.fractalgen.pixel import PixelLevel

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LevelSize(configs.Config, tag="fractal.level"):
    """``side`` of the images that the level is given, in pixels (1: single pixels; 0, of the first: the data's), and its blocks.

    ``kind``: patch after patch, or masked patches from known ones; of ``steps`` masked ones are decoded."""

    side: int
    width: int
    depth: int
    heads: int
    kind: Literal["ar", "mar"] = "ar"
    steps: int = 8

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ConfigError(f"levels.side={self.side}: must not be negative")
        for name in ("width", "depth", "heads", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"levels.{name}={getattr(self, name)}: must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"levels.width={self.width}: must be a multiple of levels.heads={self.heads}")

    def masked(self) -> Transformer.Config:
        """Blocks with layer norms and biases."""
        return Transformer.Config(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            norm=PreNorm.Config(kind="layer", eps=EPS),
            mlp=GELU.Config(form="none"),
            attention=Attention.Config(bias="qkv"),
            init=Init(std=0.02),
        )

    def causal(self) -> Transformer.Config:
        """Llama blocks with rotary positions."""
        return Transformer.Config(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            norm=PreNorm.Config(kind="rms", eps=1e-5, last="raw"),
            mlp=SwiGLU.Config(multiple_of=256),
            rope=Rope.Config(),
            init=Init(std=0.02),
        )


class Level(nn.Module):
    """A transformer over ``[guiding pixel, conditions K - 1 … 0, patches]``."""

    def __init__(self, size: LevelSize, patch: int, channels: int, above: int, conditions: int, guide: PixelLevel | None) -> None:
        """Patches of ``patch`` pixels, ``conditions`` of ``above`` channels; ``guide`` draws the mean pixel, which is given first."""
        super().__init__()
        self.size, self.patch, self.channels, self.conditions = size, patch, channels, conditions
        self.grid = size.side // patch
        self.length, self.kind = self.grid**2, size.kind
        self.prefix = conditions + (guide is not None)
        self.embed = nn.Linear(channels * patch**2, size.width)
        self.condition = nn.Linear(above, size.width)
        self.norm_in, self.norm_out = nn.LayerNorm(size.width, eps=EPS), nn.LayerNorm(size.width, eps=EPS)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.prefix + self.length, size.width))
        self.mask = nn.Parameter(0.02 * torch.randn(1, 1, size.width)) if self.kind == "mar" else None
        self.guide, self.pixel = guide, nn.Linear(channels, size.width) if guide is not None else None
        layout = TokenLayout(grids=((self.grid, self.grid),), channels=channels * patch**2)
        masked = replace(size.masked(), norm=PreNorm.Config(kind="layer", eps=EPS, last="raw"))
        self.net = cast(Transformer, (masked if self.kind == "mar" else size.causal()).build(layout))

    def patches(self, x_BCHW: Tensor) -> Tensor:
        """(B, L, P), channel first in a patch."""
        return F.pixel_unshuffle(x_BCHW, self.patch).flatten(2).transpose(1, 2)

    def image(self, x_BLP: Tensor) -> Tensor:
        """Inverse of ``patches``."""
        return F.pixel_shuffle(x_BLP.transpose(1, 2).unflatten(2, (self.grid, self.grid)), self.patch)

    def first(self, conds: list[Tensor], pixel: Tensor | None) -> list[Tensor]:
        """What leads the sequence, each (B, 1, D)."""
        lead = [] if pixel is None or self.pixel is None else [self.pixel(pixel)]
        return [x[:, None] for x in [*lead, *(self.condition(c) for c in reversed(conds[: self.conditions]))]]

    def read(self, x_BSD: Tensor, cache: list[LayerCache] | None = None, start: int = 0) -> Tensor:
        """Hidden states of a sequence, or of its part from slot ``start`` on with a cache."""
        place = torch.arange(start - self.prefix, start - self.prefix + x_BSD.shape[1], device=x_BSD.device).clamp_min(-1)[None]
        x = self.norm_in(x_BSD + self.position[:, start : start + x_BSD.shape[1]])
        if self.kind == "mar":
            return self.norm_out(self.net.stack(x, place, EVERYTHING, x))
        return self.norm_out(self.net.stack(x, place, Causal() if start == 0 else EVERYTHING, x, cache))

    def predict(self, x_BLP: Tensor, known_BL: Tensor | None, conds: list[Tensor], pixel: Tensor | None) -> Tensor:
        """(B, L, D) what is predicted of each patch: from all before it, or from those that are known."""
        x = self.embed(x_BLP)
        if self.mask is not None and known_BL is not None:
            x = torch.where(known_BL[..., None], x, self.mask)
        h = self.read(torch.cat([*self.first(conds, pixel), x], dim=1))
        return h[:, self.prefix :] if self.kind == "mar" else h[:, self.prefix - 1 : -1]

    def around(self, h_BLD: Tensor) -> list[Tensor]:
        """Of each patch its own prediction and those above, to the right, below and to the left (zeros outside), as far as asked for."""
        if self.conditions == 1:
            return [h_BLD]
        pad = F.pad(h_BLD.unflatten(1, (self.grid, self.grid)), (0, 0, 1, 1, 1, 1))
        n = self.grid
        shifts = ((1, 1), (0, 1), (1, 2), (2, 1), (1, 0))
        return [pad[:, r : r + n, c : c + n].flatten(1, 2) for r, c in shifts][: self.conditions]

    def cache(self, rows: int, like: Tensor) -> list[LayerCache]:
        """Of ``rows`` sequences."""
        return self.net.cache(rows, self.prefix + self.length, like)

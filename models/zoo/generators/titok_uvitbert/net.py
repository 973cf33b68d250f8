"""A transformer with long skips (U-ViT): late blocks are given what early ones put out.

Shapes: B rows, S slots, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import Modulation
from tokenloom.models.parts.visibility import Visibility


class UViT(Transformer):
    """Half of the blocks, one in the middle, and half again, each of which takes the output of its mirror image too (arXiv:2209.12152)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config, tag="net.u_vit", label="U-ViT"):
        """``depth`` is odd."""

        def __post_init__(self) -> None:
            if self.depth % 2 == 0:
                raise ConfigError(f"net.depth={self.depth}: must be odd, one block in the middle and as many before as after it")

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__(config, layout)
        self.middle = config.depth // 2
        self.skip = nn.ModuleList([nn.Linear(2 * config.width, config.width) for _ in range(self.middle)])
        for module in self.skip.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=config.init.std or (1 / 3 / config.width) ** 0.5)
                nn.init.zeros_(module.bias)

    def stack(
        self,
        x_BSD: Tensor,
        position_BS: Tensor,
        visibility: Visibility,
        modulation: Tensor | Modulation,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        rotations = self.rope(position_BS) if self.rope is not None else None
        shared = self.norm.shared(modulation)
        visibility = self.evaluated(visibility, x_BSD, cache)
        kept: list[Tensor] = []
        for i in range(len(self.attention)):
            if i > self.middle:
                x_BSD = self.skip[i - self.middle - 1](torch.cat([x_BSD, kept.pop()], dim=-1))
            x_BSD = self.block(
                i, x_BSD, visibility, rotations, self.norm.modulate(i, modulation, shared), cache[i] if cache else None, draws
            )
            if i < self.middle:
                kept.append(x_BSD)
        return x_BSD

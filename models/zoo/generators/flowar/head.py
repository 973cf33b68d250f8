"""A head that moves all positions of a scale together along a flow: a transformer given the hidden states (FlowAR, arXiv:2412.15205).

Shapes: B rows, L positions of all scales or of one, C channels, D width of the states.  Time runs from 0, noise, to 1, data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.mlp import SwiGLU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.time import TimeEmbedding
from tokenloom.models.parts.visibility import Mask


class ScaleFlow(nn.Module):
    """Velocities by transformer blocks that time and hidden state modulate at each position; a scale attends to itself alone."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="head.scale_flow", label="flow transformer over a scale"):
        """``width``, ``depth`` and ``heads`` of the blocks."""

        width: int = 1024
        depth: int = 2
        heads: int = 16

        def __post_init__(self) -> None:
            if self.width % self.heads or self.width // self.heads % 4:
                raise ConfigError(f"head.width={self.width}, heads={self.heads}: heads must be a multiple of 4 wide, for two rotary axes")

    scale: Tensor

    def __init__(self, config: Config, layout: TokenLayout, condition: int) -> None:
        super().__init__()
        net = Transformer.Config(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            norm=AdaLN.Config(kind="plain_rms", final="plain_rms", eps=1e-6),
            mlp=SwiGLU.Config(multiple_of=1, bias="yes", act="gelu"),
            attention=Attention.Config(bias="qkv"),
            rope=Rope.Config(reach=max(layout.grids[-1])),
        )
        self.net = cast(Transformer, net.build(layout))
        self.enter, self.condition = nn.Linear(layout.channels, config.width), nn.Linear(condition, config.width)
        self.time, self.out = TimeEmbedding(config.width, frequencies=128, unit=1.0), nn.Linear(config.width, layout.channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("scale", layout.positions[:, 1].clone(), persistent=False)

    def forward(self, x_BLC: Tensor, time_BL: Tensor, h_BLD: Tensor, place_L: Tensor) -> Tensor:
        """Velocities (B, L, C), float32, at these places of the layout; times (B, L) are alike within a scale."""
        # The net is told the share of noise in whole thousandths.
        cond = self.time(((1 - time_BL) * 1000 + 1e-4).floor()) + self.condition(h_BLD)
        scale = self.scale[place_L]
        seen = Mask((scale[:, None] == scale)[None])
        h = self.net.stack(self.enter(x_BLC.to(cond)), place_L[None], seen, cond)
        return -self.out(self.net.norm.last(h, cond)).float()

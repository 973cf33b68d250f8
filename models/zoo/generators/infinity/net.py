"""A transformer whose blocks also look at the condition's memory.

Shapes: B rows, S slots, T memory entries, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import CrossLayerCache, LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.nets.slots import modulation_of
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility
from tokenloom.models.zoo.generators.infinity.cross_attention import CrossAttention


class CrossTransformer(Transformer):
    """Between attention and MLP a normed look at the memory, which is not modulated (Infinity, arXiv:2412.04431)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Transformer.Config, tag="net.cross_attention", label="transformer, cross-attention"):
        """``look_eps`` of the norm before the look."""

        look_eps: float = 1e-6

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__(config, layout)
        width, std = config.width, config.init.std or math.sqrt(1 / 3 / config.width)
        self.look = nn.ModuleList([CrossAttention(width, config.heads, width) for _ in range(config.depth)])
        self.look_norm = nn.ModuleList([nn.LayerNorm(width, eps=config.look_eps) for _ in range(config.depth)])
        for module in self.look.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def requires(self, plan: Plan) -> Traits:
        return {"memory": Trait("yes", "net")}

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        """Empty caches; each also keeps the keys and values of the memory that its layer looks at first."""
        attention = cast(Attention, self.attention[0])
        return [CrossLayerCache(rows, attention.kv_heads, slots, attention.head_width, like) for _ in self.attention]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), after the last norm."""
        if cond.memory_BTD is None:
            raise LayoutError("this net needs a condition with a memory")
        modulation, x = modulation_of(slots, cond), slots.x_BSD
        rotations, shared = self.rope(slots.position_BS) if self.rope is not None else None, self.norm.shared(modulation)
        visibility = self.evaluated(visibility, x, cache)
        for i, (look, look_norm) in enumerate(zip(self.look, self.look_norm)):
            how = self.norm.modulate(i, modulation, shared)
            layer = cache[i] if cache else None
            x = self.attend_to(i, x, visibility, rotations, how[0], layer, draws)
            kept = layer.memory if isinstance(layer, CrossLayerCache) else None
            x = x + look(look_norm(x), cond.memory_BTD, cond.memory_seen_BT, kept)
            x = self.transform(i, x, how[1], draws)
        return self.norm.last(x, modulation)

"""The transformer that most generators share: blocks of attention and MLP over slots.

Shapes: B rows, S slots, T keys, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, overload

import torch
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import branch
from tokenloom.models.parts.mlp import MLP, SwiGLU
from tokenloom.models.parts.nets.slots import SlotNet, modulation_of
from tokenloom.models.parts.norms import BlockNorm, Branch, Modulation, PreNorm
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.rope import Rope
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Visibility


@dataclass(frozen=True, kw_only=True)
class Init(config.Config, tag="init.normal"):
    """Initial weights: normal with ``std`` (0: ``sqrt(1 / 3D)``, as VAR), residual outputs divided by ``sqrt(2 depth)`` if set."""

    std: float = 0.02
    scale_residual: bool = False


class Transformer(SlotNet):
    """Pre-norm transformer; what a slot attends to is given from outside, so that any order runs on it."""

    keeps: ClassVar[Literal["slots", "state", "other"]] = "slots"

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.transformer"):
        """Width, depth and heads, and the parts that blocks are made of."""

        width: int
        depth: int
        heads: int
        norm: BlockNorm.Config = PreNorm.Config()
        mlp: MLP.Config = SwiGLU.Config()
        attention: Attention.Config = Attention.Config()
        rope: Rope.Config | None = None
        dropout: float = 0.0
        drop_path: float = 0.0
        init: Init = Init()

        @property
        def label(self) -> str:
            return self.words + self.norm.suffix

    def __init__(self, config: Config, layout: TokenLayout, condition: int | None = None) -> None:
        """``condition``: width of the vectors that modulate the norms, if not the net's own."""
        super().__init__()
        if config.depth < 1 or (config.width % config.heads and not config.attention.head_width):
            raise ValueError(
                f"net.width={config.width} must be divisible by net.heads={config.heads}, and net.depth={config.depth} at least 1"
            )
        if not 0 <= config.dropout < 1 or not 0 <= config.drop_path < 1:
            raise ValueError(f"net.dropout={config.dropout}, net.drop_path={config.drop_path}: must be in [0, 1)")
        self.config, self.width = config, config.width
        self.norm = config.norm.build(config.width, config.depth, condition=condition)
        self.attention = nn.ModuleList([config.attention.build(config.width, config.heads) for _ in range(config.depth)])
        self.mlp = nn.ModuleList([config.mlp.build(config.width) for _ in range(config.depth)])
        self.rope = config.rope.build(layout, config.attention.head_width or config.width // config.heads) if config.rope else None
        # Stochastic depth grows linearly with depth (arXiv:1603.09382, VAR).
        self.drop_rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self._initialise()

    def _initialise(self) -> None:
        std = self.config.init.std or math.sqrt(1 / 3 / self.width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.init.scale_residual:
            with torch.no_grad():
                for attention, mlp in zip(self.attention, self.mlp):
                    cast(Attention, attention).proj.weight /= math.sqrt(2 * self.config.depth)
                    cast(MLP, mlp).out.weight /= math.sqrt(2 * self.config.depth)
        self.norm.initialise()

    def traits(self, plan: Plan) -> Traits:
        return {"attention heads": Trait(self.config.heads, "net.heads"), "rotary positions": Trait(self.config.rope, "net.rope")}

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        attention = cast(Attention, self.attention[0])
        return [LayerCache(rows, attention.kv_heads, slots, attention.head_width, like) for _ in self.attention]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), after the last norm."""
        modulation = modulation_of(slots, cond)
        return self.ended(self.stack(slots.x_BSD, slots.position_BS, visibility, modulation, cache, draws), modulation)

    def ended(self, h_BSD: Tensor, modulation: Tensor | Modulation) -> Tensor:
        """The stream after all blocks under the last norm."""
        return self.norm.last(h_BSD, spread(modulation, h_BSD.shape[1]))

    @staticmethod
    def evaluated(visibility: Visibility, x_BSD: Tensor, cache: list[LayerCache] | None) -> Visibility:
        """A mask is made once for all blocks."""
        new = x_BSD.shape[1]
        return visibility.evaluated(new, new + (cache[0].used if cache else 0), x_BSD.device)

    def stack(
        self,
        x_BSD: Tensor,
        position_BS: Tensor,
        visibility: Visibility,
        modulation: Tensor | Modulation,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """All blocks, without the last norm.

        ``position_BS`` (B or 1, S) are layout positions for rotary tables (-1: none), ``modulation`` the norms': (B, S, D), or fewer
        vectors, each of as many neighbouring slots.
        """
        rotations = self.rope(position_BS) if self.rope is not None else None
        return self.turned(x_BSD, rotations, visibility, modulation, cache, draws)

    def turned(
        self,
        x_BSD: Tensor,
        rotations: Tensor | None,
        visibility: Visibility,
        modulation: Tensor | Modulation,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
        stop: int | None = None,
    ) -> Tensor:
        """All blocks (or those before ``stop``), without the last norm, with these rotary tables (None: none) in place of the net's own."""
        shared = self.norm.shared(modulation)
        visibility = self.evaluated(visibility, x_BSD, cache)
        for i in range(len(self.attention))[:stop]:
            how = [spread_branch(each, x_BSD.shape[1]) for each in self.norm.modulate(i, modulation, shared)]
            x_BSD = self.block(i, x_BSD, visibility, rotations, how, cache[i] if cache else None, draws)
        return x_BSD

    def block(
        self,
        index: int,
        x_BSD: Tensor,
        visibility: Visibility,
        rotations: Tensor | None,
        how: list[Branch | None],
        cache: LayerCache | None,
        draws: Draws | None,
    ) -> Tensor:
        """One block: attention, then MLP."""
        if cache is not None and cache.rests:
            return x_BSD
        x_BSD = self.attend_to(index, x_BSD, visibility, rotations, how[0], cache, draws)
        if cache is None:
            return self.transform(index, x_BSD, how[1], draws)
        return cache.transformed(x_BSD, lambda x: self.transform(index, x, how[1], draws))

    def attend_to(
        self,
        index: int,
        x_BSD: Tensor,
        visibility: Visibility,
        rotations: Tensor | None,
        how: Branch | None,
        cache: LayerCache | None,
        draws: Draws | None,
    ) -> Tensor:
        """The attention branch of a block, joined."""
        y = self.attention[index](self.norm.enter(index, 0, x_BSD, how), visibility, rotations, cache)
        return self.norm.join(index, 0, x_BSD, branch(self.norm.gate(y, how), self.config.dropout, self.drop_rates[index], draws))

    def transform(self, index: int, x_BSD: Tensor, how: Branch | None, draws: Draws | None) -> Tensor:
        """The MLP branch of a block, joined."""
        y = self.mlp[index](self.norm.enter(index, 1, x_BSD, how))
        return self.norm.join(index, 1, x_BSD, branch(self.norm.gate(y, how), self.config.dropout, self.drop_rates[index], draws))


@overload
def spread(vector: Tensor, slots: int) -> Tensor: ...
@overload
def spread(vector: Tensor | Modulation, slots: int) -> Tensor | Modulation: ...
def spread(vector: Tensor | Modulation, slots: int) -> Tensor | Modulation:
    """(B, 1 or S, D) of (B, G, D), each vector being that of S / G neighbouring slots; what was made ahead is that of each slot."""
    if isinstance(vector, Modulation) or vector.shape[1] in (1, slots):
        return vector
    return vector.repeat_interleave(slots // vector.shape[1], 1)


def spread_branch(how: Branch | None, slots: int) -> Branch | None:
    """The same of a branch's values."""
    return None if how is None else (spread(how[0], slots), spread(how[1], slots), spread(how[2], slots))

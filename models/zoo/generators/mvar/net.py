"""A net for next-scale prediction in linear time: attention inside each scale, a recurrent mixer from scale to scale.

Shapes: B rows, S slots, T slots so far, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import branch
from tokenloom.models.parts.mlp import GELU, MLP
from tokenloom.models.parts.nets.mamba import Selective
from tokenloom.models.parts.nets.sequence import Mixer, initialise
from tokenloom.models.parts.nets.slots import SlotNet, modulation_of
from tokenloom.models.parts.norms import AdaLN, BlockNorm
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Everything, Groups, Visibility


class ScaleNet(SlotNet):
    """Blocks of three branches: attention within the own scale, a mixer over all slots in storage order, an MLP (arXiv:2411.10433).

    The mixer is causal from slot to slot, so also inside a scale.  What a scale is given is known as a whole before any of it is
    predicted, and slots may see all of it: a causal scan uses less than the plan allows, never more.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.scales"):
        """Width, depth and heads, and the parts that blocks are made of; ``std`` of initial weights (0: ``sqrt(1 / 3D)``)."""

        width: int
        depth: int
        heads: int
        attention: Attention.Config = Attention.Config()
        mixer: Mixer.Config = Selective.Config()
        norm: BlockNorm.Config = AdaLN.Config()
        mlp: MLP.Config = GELU.Config()
        dropout: float = 0.0
        drop_path: float = 0.0
        std: float = 0.0

        @property
        def label(self) -> str:
            return f"attention within a scale, {self.mixer.label} across{self.norm.suffix}"

    scale: Tensor

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        if config.depth < 1 or config.heads < 1 or config.width % config.heads:
            raise ConfigError(
                f"net.width={config.width} must be divisible by net.heads={config.heads}, net.depth={config.depth} at least 1"
            )
        if not 0 <= config.dropout < 1 or not 0 <= config.drop_path < 1:
            raise ConfigError(f"net.dropout={config.dropout}, net.drop_path={config.drop_path}: must be in [0, 1)")
        self.config, self.width = config, config.width
        self.sizes = layout.scale_sizes * layout.frames
        self.starts = dict(zip(accumulate((0, *self.sizes)), self.sizes))
        self.norm = config.norm.build(config.width, config.depth, 3)
        self.attention = nn.ModuleList([config.attention.build(config.width, config.heads) for _ in range(config.depth)])
        self.mixer = nn.ModuleList([config.mixer.build(config.width) for _ in range(config.depth)])
        self.mlp = nn.ModuleList([config.mlp.build(config.width) for _ in range(config.depth)])
        self.drop_rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        scale = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes), output_size=sum(self.sizes))
        self.register_buffer("scale", scale, persistent=False)
        residual = math.sqrt(3 * config.depth)
        initialise(self, config.std or math.sqrt(1 / 3 / config.width), residual)
        for attention in self.attention:
            attention.proj.weight.data /= residual  # type: ignore[union-attr, operator]

    def requires(self, plan: Plan) -> Traits:
        return {"slots of whole scales": Trait("yes", "net")}

    def check(self, plan: Plan) -> None:
        if plan.sizes != self.sizes or plan.window is not None:
            raise ConfigError(self._refusal())

    def cache(self, rows: int, slots: int, like: Tensor) -> list[Any]:
        """The mixers' states: attention needs nothing of earlier scales."""
        return [mixer.state(rows, like) for mixer in self.mixer]  # type: ignore[operator]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[Any] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), after the last norm.

        Raises:
            ConfigError: slots are not whole scales in storage order, or may not see all of their own and earlier scales.
        """
        sizes = self._sizes(slots, visibility, cache[0].used if cache else 0)
        x_BSD, modulation = slots.x_BSD, modulation_of(slots, cond)
        shared = self.norm.shared(modulation)
        for i, (attention, mixer, mlp) in enumerate(zip(self.attention, self.mixer, self.mlp)):
            own, across, last = self.norm.modulate(i, modulation, shared)
            parts = self.norm.enter(i, 0, x_BSD, own).split(sizes, dim=1)
            y = torch.cat([attention(part, Everything(), None, None) for part in parts], dim=1)
            x_BSD = self.norm.join(i, 0, x_BSD, branch(self.norm.gate(y, own), self.config.dropout, self.drop_rates[i], draws))
            y = mixer(self.norm.enter(i, 1, x_BSD, across), cache[i] if cache else None)
            x_BSD = self.norm.join(i, 1, x_BSD, branch(self.norm.gate(y, across), self.config.dropout, self.drop_rates[i], draws))
            y = mlp(self.norm.enter(i, 2, x_BSD, last))
            x_BSD = self.norm.join(i, 2, x_BSD, branch(self.norm.gate(y, last), self.config.dropout, self.drop_rates[i], draws))
        return self.norm.last(x_BSD, modulation)

    def _sizes(self, slots: Slots, visibility: Visibility, before: int) -> list[int]:
        """Lengths of the scales at hand."""
        new = slots.x_BSD.shape[1]
        if isinstance(visibility, Everything):
            whole, sizes = self.starts.get(before) == new, [new]
        else:  # that the groups are the scales was checked at build (``check``)
            whole = before == 0 and isinstance(visibility, Groups) and visibility.window is None and new == sum(self.sizes)
            sizes = list(self.sizes)
        if not whole or slots.queries:
            raise ConfigError(self._refusal())
        return sizes

    def _refusal(self) -> str:
        return (
            f"this net takes whole scales of {self.sizes} positions, each of which attends to itself and all earlier ones; this order or "
            "feed has something else: use order=Scales() without a window and a feed of next scales, as in var"
        )

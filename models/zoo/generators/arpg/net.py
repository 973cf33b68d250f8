"""Two passes: self-attention over what is known, then queries that look at it through one shared set of keys and values.

Shapes: B rows, S slots of which the last Q are queries, T content keys, H heads, E head width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import attend
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import dropout
from tokenloom.models.parts.mlp import MLP
from tokenloom.models.parts.nets.slots import SlotNet, modulation_of
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.rope import rotate
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Visibility


class TwoPass(SlotNet):
    """ARPG's net (arXiv:2503.10568): ``content`` is causal self-attention, whose normed output gives keys and values once for
    ``depth`` blocks of cross-attention.  Queries attend to no query, so any number of positions is predicted at once."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.two_pass", label="self-attention, then cross-attention"):
        """The content's transformer; the query blocks have its width, heads, norms and MLPs."""

        content: Transformer.Config
        depth: int

        @property
        def width(self) -> int:  # type: ignore[override]
            """That of the content."""
            return self.content.width

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        own, width = config.content, config.width
        self.heads, self.head_width, self.rate = own.heads, width // own.heads, own.dropout
        self.content = cast(Transformer, own.build(layout))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.norm = own.norm.build(width, config.depth)
        self.query = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(config.depth)])
        self.proj = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(config.depth)])
        self.mlp = nn.ModuleList([own.mlp.build(width) for _ in range(config.depth)])
        for part in (self.key, self.value, self.query, self.proj, self.mlp):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=own.init.std or math.sqrt(1 / 3 / width))
        self.norm.initialise()

    def traits(self, plan: Plan) -> Traits:
        return {"query slots": Trait("of the content alone", "net")}

    def cache(self, rows: int, slots: int, like: Tensor) -> list[LayerCache]:
        return [*self.content.cache(rows, slots, like), LayerCache(rows, self.heads, slots, self.head_width, like)]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[LayerCache] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D): those of the content are not for reading."""
        known, modulation = slots.x_BSD.shape[1] - slots.queries, modulation_of(slots, cond)
        if slots.queries == 0 or isinstance(visibility, Causal):
            raise LayoutError("this net needs a feed with query slots")
        keys = (cache[0].used if cache else 0) + slots.x_BSD.shape[1]
        whole = visibility.evaluated(slots.x_BSD.shape[1], keys, slots.x_BSD.device)
        content = slice(0, keys - slots.queries)  # queries are the last slots, and no slot attends to them
        own, other = whole.part(slice(0, known), content), whole.part(slice(known, None), content)
        place = slots.position_BS
        inner = replace(slots, x_BSD=slots.x_BSD[:, :known], position_BS=place[:, :known], queries=0)
        h = self.content(inner, own, cond, cache[:-1] if cache else None, draws)
        k, v = self._split(self.key(h)), self._split(self.value(h))
        rotations = self.content.rope(place) if self.content.rope is not None else None
        if rotations is not None:
            k = rotate(k, rotations[:, :, :known])
        if cache is not None:
            k, v = cache[-1].append(k, v)
        x = slots.x_BSD[:, known:]
        shared = self.norm.shared(modulation)
        for i, (query, proj, mlp) in enumerate(zip(self.query, self.proj, self.mlp)):
            first, second = self.norm.modulate(i, modulation, shared)
            q = self._split(query(self.norm.enter(i, 0, x, first)))
            q = q if rotations is None else rotate(q, rotations[:, :, known:])
            y = proj(attend(q, k, v, other, self.head_width**-0.5))
            x = self.norm.join(i, 0, x, dropout(self.norm.gate(y, first), self.rate, draws))
            y = cast(MLP, mlp)(self.norm.enter(i, 1, x, second))
            x = self.norm.join(i, 1, x, dropout(self.norm.gate(y, second), self.rate, draws))
        x = self.norm.last(x, modulation)
        return nn.functional.pad(x, (0, 0, known, 0))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.head_width)).transpose(1, 2)

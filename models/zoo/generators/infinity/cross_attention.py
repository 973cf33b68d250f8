"""Cross-attention to a memory, from slots or from one learned query that pools it.

Shapes: B rows, S slots, T memory entries, H heads, E head width, D width, M memory width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.attention import attend
from tokenloom.models.parts.cache import MemoryCache
from tokenloom.models.parts.visibility import Everything, Mask, Visibility

#: Queries, keys, values, what they attend to, factor: heads side by side.
Kernel = Callable[[Tensor, Tensor, Tensor, Visibility, float], Tensor]


class CrossAttention(nn.Module):
    """Queries of slots (B, S, D) over a memory (B, T, M); keys have no bias."""

    def __init__(self, width: int, heads: int, memory: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ConfigError(f"heads={heads}: cross-attention heads must divide the width {width}")
        self.heads = heads
        self.query: nn.Module = nn.Linear(width, width)
        self.kv = nn.Linear(memory, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.kernel: Kernel = attend

    def forward(self, x_BSD: Tensor, memory_BTM: Tensor, seen_BT: Tensor | None, kept: MemoryCache | None = None) -> Tensor:
        """(B, S, D); ``seen_BT`` is true where the memory may be looked at, ``kept`` spares later looks at this memory its projection."""
        return self._over(self._split(self.query(x_BSD)), memory_BTM, seen_BT, kept)

    def _over(self, q_BHSE: Tensor, memory_BTM: Tensor, seen_BT: Tensor | None, kept: MemoryCache | None = None) -> Tensor:
        k, v = self.project(memory_BTM) if kept is None else kept.once(lambda: self.project(memory_BTM))
        visibility = Everything() if seen_BT is None else Mask(seen_BT[:, None])
        return self.proj(self.kernel(q_BHSE, k, v, visibility, 1 / math.sqrt(q_BHSE.shape[-1])))

    def project(self, memory_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, (B, H, T, E) each."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = F.linear(memory_BTM, self.kv.weight, bias).chunk(2, dim=-1)
        return self._split(k), self._split(v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class AttentivePool(CrossAttention):
    """One learned query a head over the memory: (B, T, M) to (B, D)."""

    def __init__(self, width: int, heads: int, memory: int) -> None:
        super().__init__(width, heads, memory)
        self.query = nn.Identity()
        self.start = nn.Parameter(torch.empty(1, heads, width // heads))
        nn.init.trunc_normal_(self.start, std=math.sqrt(1 / 3 / width))

    def forward(self, memory_BTM: Tensor, seen_BT: Tensor | None) -> Tensor:  # type: ignore[override]
        """(B, D)."""
        return self._over(self.start.unsqueeze(2).expand(len(memory_BTM), -1, -1, -1), memory_BTM, seen_BT)[:, 0]

"""Attention with its choices as values: how queries and keys are compared, which biases exist.

Shapes: B rows, S slots, T keys, H heads, E head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.cache import attend as attend
from tokenloom.models.parts.rope import rotate
from tokenloom.models.parts.similarity import Scaled, Similarity
from tokenloom.models.parts.visibility import Visibility


class Attention(nn.Module):
    """Multi-head self-attention over visible slots, with an optional cache."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="attention.softmax"):
        """``bias``: on none of the projections, on query, value and output ("qv", VAR), on the output ("out"), on query, key and value
        ("in", Qwen2.5), or on all ("qkv").

        Heads are ``head_width`` wide (0: the width over their number); ``kv_heads`` of them have keys and values, each for as many
        neighbouring heads of queries (arXiv:2305.13245; 0: all).
        """

        similarity: Similarity = Scaled()
        bias: Literal["none", "qv", "out", "in", "qkv"] = "none"
        kv_heads: Added[int] = 0
        head_width: Added[int] = 0

    def __init__(self, config: Config, width: int, heads: int) -> None:
        super().__init__()
        kv_heads = config.kv_heads or heads
        if (width % heads and not config.head_width) or heads % kv_heads:
            raise ValueError(f"width {width} must be divisible by heads {heads}, and heads by key/value heads {kv_heads}")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, config.head_width or width // heads
        self.similarity = config.similarity.build(heads, self.head_width)
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=config.bias in ("in", "qkv"))
        self.proj = nn.Linear(heads * self.head_width, width, bias=config.bias not in ("none", "in"))
        if config.bias == "qv":
            # A key bias shifts all scores of a query alike, so the softmax ignores it.
            self.q_bias = nn.Parameter(torch.zeros(heads * self.head_width))
            self.v_bias = nn.Parameter(torch.zeros(kv_heads * self.head_width))
        else:
            self.q_bias = self.v_bias = None  # type: ignore[assignment]

    def forward(self, x_BSD: Tensor, visibility: Visibility, rotations: Tensor | None, cache: LayerCache | None) -> Tensor:
        """Attend (B, S, D) -> (B, S, D); ``rotations`` are rotary tables."""
        kv_width = self.kv_heads * self.head_width
        bias = self.qkv.bias if self.q_bias is None else torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x_BSD, self.qkv.weight, bias).split([self.heads * self.head_width, kv_width, kv_width], dim=-1)
        q, k, v = (t.unflatten(2, (-1, self.head_width)).transpose(1, 2) for t in (q, k, v))
        q, k, factor = self.similarity(q, k)
        if rotations is not None:
            q, k = rotate(q, rotations), rotate(k, rotations)
        seen = attend(q, k, v, visibility, factor) if cache is None else cache.attend(q, k, v, visibility, factor)
        return self.proj(seen)

"""Self-attention with its choices as values: how queries and keys are scaled, which biases exist.

Shapes: B rows, S slots, T slots in sight, H heads, E head width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import config
from models.parts.cache import LayerCache
from models.parts.rope import rotate


@dataclass(frozen=True, kw_only=True)
class Scaled(config.Config):
    """Dot products times ``gain / sqrt(E)``; the usual attention has gain 1, VAR without l2-norm 0.25."""

    gain: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(config.Config):
    """Cosine similarity times a learned temperature per head, at most ``ceiling`` (arXiv:2111.09883, VAR)."""

    start: float = 4.0
    ceiling: float = 100.0


class Attention(nn.Module):
    """Multi-head self-attention over visible slots, with an optional cache."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``bias``: on none of the projections, on query, value and output ("qv", VAR), or on all ("qkv")."""

        similarity: Scaled | Cosine = Scaled()
        bias: Literal["none", "qv", "qkv"] = "none"

        def build(self, width: int, heads: int, kv_heads: int | None = None) -> Attention:
            """The module for this width."""
            return Attention(self, width, heads, kv_heads or heads)

    def __init__(self, config: Config, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        if width % heads or heads % kv_heads:
            raise ValueError(f"width {width} must be divisible by heads {heads}, and heads by key/value heads {kv_heads}")
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.similarity = config.similarity
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=config.bias == "qkv")
        self.proj = nn.Linear(width, width, bias=config.bias != "none")
        if config.bias == "qv":
            # A key bias shifts all scores of a query alike, so the softmax ignores it.
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(kv_heads * self.head_width))
        else:
            self.q_bias = self.v_bias = None  # type: ignore[assignment]
        if isinstance(config.similarity, Cosine):
            self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(config.similarity.start)))

    def forward(self, x_BSD: Tensor, mask: Tensor | None, turn: Tensor | None, cache: LayerCache | None) -> Tensor:
        """Attend (B, S, D) -> (B, S, D).

        ``mask`` (B or 1, 1, S, T) is true where a slot is seen, None when all are; ``turn`` are rotary tables.
        """
        rows, slots, width = x_BSD.shape
        kv_width = self.kv_heads * self.head_width
        q, k, v = self.qkv(x_BSD).split([width, kv_width, kv_width], dim=-1)
        if self.q_bias is not None:
            q, v = q + self.q_bias, v + self.v_bias
        q = q.view(rows, slots, self.heads, self.head_width).transpose(1, 2)
        k, v = (t.view(rows, slots, self.kv_heads, self.head_width).transpose(1, 2) for t in (k, v))
        q, k, scale = self._scale(q, k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = cache.append(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=self.heads != self.kv_heads)
        return self.proj(out.transpose(1, 2).reshape(rows, slots, width))

    def _scale(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        match self.similarity:
            case Scaled(gain=gain):
                return q, k, gain / math.sqrt(self.head_width)
            case Cosine(ceiling=ceiling):
                # Norms in float32: in half precision the squares overflow (sihyun-yu/REPA#46).
                temperature = self.temperature.clamp(max=math.log(ceiling)).exp()
                q = F.normalize(q.float(), dim=-1) * temperature
                return q.to(k.dtype), F.normalize(k.float(), dim=-1).to(k.dtype), 1.0

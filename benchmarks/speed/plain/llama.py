"""What LlamaGen's official code is made of, which RandAR and ARPG repeat.  Shapes: B rows, S slots, T keys, H heads, E head width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt((x32 * x32).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        multiple = c["multiple_of"]
        hidden = -(-int(2 * 4 * c["dim"] / 3) // multiple) * multiple
        self.w1, self.w3 = nn.Linear(c["dim"], hidden, bias=False), nn.Linear(c["dim"], hidden, bias=False)
        self.w2 = nn.Linear(hidden, c["dim"], bias=False)
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.w2(F.silu(self.w1(x)) * self.w3(x)))


def rotary_table(side: int, width: int, base: float, prefix: int) -> Tensor:
    """(prefix + side^2, E/2, 2) cosines and sines on a grid; those of the prefix are zero."""
    half = width // 2
    frequency = 1.0 / base ** (torch.arange(0, half, 2).float() / half)
    angle = torch.outer(torch.arange(side), frequency)
    grid = torch.cat([angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)], dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros(prefix, half, 2), torch.stack([grid.cos(), grid.sin()], dim=-1)])


def rotate(x_BSHE: Tensor, table: Tensor) -> Tensor:
    """Interleaved pairs rotated by (S, E/2, 2) or (B, S, E/2, 2)."""
    pair = x_BSHE.float().reshape(*x_BSHE.shape[:-1], -1, 2)
    table = table.view(-1, pair.shape[1], 1, pair.shape[3], 2)
    turned = torch.stack(
        [
            pair[..., 0] * table[..., 0] - pair[..., 1] * table[..., 1],
            pair[..., 1] * table[..., 0] + pair[..., 0] * table[..., 1],
        ],
        dim=-1,
    )
    return turned.flatten(3).type_as(x_BSHE)


class KVCache:
    """Keys and values of the longest sequence, all of which are looked at under a mask."""

    def __init__(self, rows: int, heads: int, length: int, width: int) -> None:
        self.k, self.v = torch.zeros(rows, heads, length, width), torch.zeros(rows, heads, length, width)

    def update(self, at: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k[:, :, at], self.v[:, :, at] = k, v
        return self.k, self.v


class Attention(nn.Module):
    """Rotary self-attention; ``cache`` is LlamaGen's."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, dim = c["n_head"], c["dim"]
        self.wqkv, self.wo = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.cache: KVCache | None = None
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def forward(self, x: Tensor, table: Tensor, at: Tensor | None, mask: Tensor | None) -> Tensor:
        rows, slots, dim = x.shape
        q, k, v = (t.view(rows, slots, self.heads, -1) for t in self.wqkv(x).split(dim, dim=-1))
        q, k, v = rotate(q, table).transpose(1, 2), rotate(k, table).transpose(1, 2), v.transpose(1, 2)
        if self.cache is not None:
            assert at is not None
            k, v = self.cache.update(at, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.drop(self.wo(out.transpose(1, 2).contiguous().view(rows, slots, dim)))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(c), FeedForward(c)
        self.attention_norm, self.ffn_norm = RMSNorm(c["dim"], c["norm_eps"]), RMSNorm(c["dim"], c["norm_eps"])

    def forward(self, x: Tensor, table: Tensor, at: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h = x + self.attention(self.attention_norm(x), table, at, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class Labels(nn.Module):
    """The table of classes, the null one last."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(c["num_classes"] + 1, c["dim"])

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Ids of (…, V) logits: top-k, then the nucleus by a sort of the whole vocabulary, then multinomial."""
    logits = logits / max(temperature, 1e-5)
    if top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1]))[0][..., -1:], -torch.inf)
    if top_p < 1.0:
        value, index = torch.sort(logits, descending=True)
        gone = value.softmax(-1).cumsum(-1) > top_p
        gone[..., 1:] = gone[..., :-1].clone()
        gone[..., 0] = False
        logits = logits.masked_fill(gone.scatter(-1, index, gone), -torch.inf)
    return torch.multinomial(logits.softmax(-1).flatten(0, -2), 1).view(logits.shape[:-1])

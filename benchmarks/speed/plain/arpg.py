"""ARPG (arXiv:2503.10568) as published: causal self-attention over what is known, then queries that look at it; caches grow by ``cat``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.plain.llama import FeedForward, RMSNorm, draw, rotary_table, rotate

Pair = tuple[Tensor, Tensor]


class SelfAttention(nn.Module):
    """Causal in training; in sampling the tokens of a step see each other."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, dim = c["n_head"], c["dim"]
        self.to_q, self.to_k, self.to_v, self.proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.cache: Pair | None = None
        self.caching = False
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        rows, slots, dim = x.shape
        q, k, v = (f(x).view(rows, slots, self.heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        q, k, v = rotate(q, table).transpose(1, 2), rotate(k, table).transpose(1, 2), v.transpose(1, 2)
        if self.caching:
            k, v = self.cache = (k, v) if self.cache is None else (torch.cat([self.cache[0], k], 2), torch.cat([self.cache[1], v], 2))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=not self.caching)
        return self.drop(self.proj(out.transpose(1, 2).contiguous().view(rows, slots, dim)))


class CrossAttention(nn.Module):
    """Queries over the shared keys and values."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.heads, dim = c["n_head"], c["dim"]
        self.to_q, self.proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, table: Tensor, causal: bool) -> Tensor:
        rows, slots, dim = x.shape
        q = rotate(self.to_q(x).view(rows, slots, self.heads, -1), table).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.drop(self.proj(out.transpose(1, 2).contiguous().view(rows, slots, dim)))


class Layer(nn.Module):
    """Pre-norm block around one of both attentions."""

    def __init__(self, c: dict[str, Any], attn: nn.Module) -> None:
        super().__init__()
        self.attn, self.ffn = attn, FeedForward(c)
        self.attn_norm, self.ffn_norm = RMSNorm(c["dim"], c["norm_eps"]), RMSNorm(c["dim"], c["norm_eps"])

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        h = x + self.attn(self.attn_norm(x), *given)
        return h + self.ffn(self.ffn_norm(h))


class TwoDecoders(nn.Module):
    """Half of the layers read, half answer."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        half, dim = c["n_layer"] // 2, c["dim"]
        self.self_dec = nn.ModuleList([Layer(c, SelfAttention(c)) for _ in range(half)])
        self.cross_dec = nn.ModuleList([Layer(c, CrossAttention(c)) for _ in range(half)])
        self.norm = RMSNorm(dim, c["norm_eps"])
        self.to_k, self.to_v = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.heads, self.cache, self.caching = c["n_head"], None, False

    def forward(self, x: Tensor, q: Tensor, table: Tensor, asked: Tensor) -> Tensor:
        for layer in self.self_dec:
            x = layer(x, table)
        x = self.norm(x)
        k = rotate(self.to_k(x).view(*x.shape[:2], self.heads, -1), table).transpose(1, 2)
        v = self.to_v(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        if self.caching:
            cache: Any = self.cache
            k, v = self.cache = (k, v) if cache is None else (torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2))  # type: ignore[assignment]
        for layer in self.cross_dec:
            q = layer(q, k, v, asked, not self.caching)
        return q

    def cached(self, on: bool) -> None:
        """Empty caches, or none."""
        self.caching, self.cache = on, None
        for layer in self.self_dec:
            layer.attn.caching, layer.attn.cache = on, None


class ARPG(nn.Module):
    """Class-conditional; ``order`` (B, L) in training, (L,) shared by the rows in sampling."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.c, self.length, dim = c, c["block_size"], c["dim"]
        self.embeddings = nn.Embedding(c["vocab_size"] + 1 + c["num_classes"] + 2, dim)
        self.layers, self.norm = TwoDecoders(c), RMSNorm(dim, c["norm_eps"])
        self.head = nn.Linear(dim, c["vocab_size"], bias=False)
        self.table = rotary_table(round(self.length**0.5), dim // c["n_head"], c["rope_base"], 1)
        self.embed_drop = nn.Dropout(c.get("dropout", 0.0))

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in a random order of each row where none is given."""
        order = torch.rand(ids.shape).argsort(1) if order is None else order
        target, table = ids.gather(1, order), self.table[1:][order]
        x = torch.cat([label[:, None] + self.c["vocab_size"] + 1, target[:, :-1]], dim=1)
        q = self.embeddings(torch.full_like(target, self.c["vocab_size"]))
        held = torch.cat([self.table[:1].expand(len(ids), 1, -1, -1), table[:, :-1]], dim=1)
        logits = self.head(self.norm(self.layers(self.embed_drop(self.embeddings(x)), q, held, table))).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), target.reshape(-1))

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids; guidance grows from 1 to ``scale`` with the share of tokens that are known after the step."""
        rows, length, vocabulary = len(label), self.length, self.c["vocab_size"]
        order = torch.rand(length).argsort() if order is None else order
        self.layers.cached(True)
        given = torch.cat([label, torch.full_like(label, self.c["num_classes"])])[:, None] + vocabulary + 1
        held, ids = torch.zeros(1, dtype=torch.long), torch.zeros(rows, length, dtype=torch.long)
        known, steps = 0, self.c["num_iter"]
        for step in range(1, steps + 1):
            masked = math.acos(step / steps) / (math.pi / 2)
            upto = length if step == steps else max(known + 1, length - math.floor(masked * length))
            upto = min(upto, length - (steps - step))
            asked = order[known:upto]
            q = self.embeddings(torch.full((2 * rows, len(asked)), vocabulary))
            h = self.layers(self.embeddings(given), q, self.table[held][None], self.table[1 + asked][None])
            cond, null = self.head(self.norm(h)).float().chunk(2)
            weight = 1 + (scale - 1) * upto / length
            drawn = draw(null + weight * (cond - null), 1.0, top_k, top_p)
            ids[:, asked] = drawn
            given, held, known = torch.cat([drawn, drawn]), 1 + asked, upto
        self.layers.cached(False)
        return ids

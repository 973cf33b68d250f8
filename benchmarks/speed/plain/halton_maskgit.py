"""Halton-MaskGIT (arXiv:2503.17076) as published: at every step all positions are predicted and drawn, then a group is written."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.plain.llama import draw


class RMSNorm(nn.Module):
    """Root-mean-square norm, with a bias if asked."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = rms(x) * self.weight
        return x if self.bias is None else x + self.bias


def rms(x: Tensor) -> Tensor:
    """x over its root mean square."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x)


class Attention(nn.Module):
    """Full self-attention; queries and keys are normed over all heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        rows, slots, dim = x.shape
        q, k, v = rms(self.wq(x)), rms(self.wk(x)), self.wv(x)
        q, k, v = (t.view(rows, slots, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.wo(out.transpose(1, 2).contiguous().view(rows, slots, dim))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        hidden = -(-int(2 * mlp_dim / 3) // 256) * 256
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Both branches shifted, scaled and gated by the class."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim = c["hidden_dim"]
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.ln1, self.ln2 = RMSNorm(dim, False), RMSNorm(dim, False)
        self.attn, self.ff = Attention(dim, c["heads"]), FeedForward(dim, c["mlp_dim"])
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (t[:, None] for t in self.mlp(cond).chunk(6, dim=-1))
        x = x + self.drop(gate1 * self.attn(self.ln1(x) * (1 + scale1) + shift1))
        return x + self.drop(gate2 * self.ff(self.ln2(x) * (1 + scale2) + shift2))


class Layers(nn.Module):
    """The stack."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["depth"])])


class Last(nn.Module):
    """The norm before the head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(dim, True)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale = (t[:, None] for t in self.mlp(cond).chunk(2, dim=-1))
        return self.norm_final(x) * (1 + scale) + shift


class HaltonMaskGIT(nn.Module):
    """Class-conditional; ``order`` in training is (B, L), true at masked positions."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, self.c, self.length = c["hidden_dim"], c, c["input_size"] ** 2
        self.cls_emb, self.tok_emb = nn.Embedding(c["nclass"] + 1, dim), nn.Embedding(c["codebook_size"] + 1, dim)
        self.pos_emb, self.reg_tokens = nn.Embedding(self.length, dim), nn.Embedding(c["register"], dim)
        self.transformer, self.last_norm = Layers(c), Last(dim)
        self.head = nn.Linear(dim, c["codebook_size"] + 1)
        self.head.weight = self.tok_emb.weight
        self.drop = nn.Dropout(c.get("dropout", 0.0))
        self.visited = torch.tensor(halton(c["input_size"]))

    def _logits(self, code: Tensor, label: Tensor) -> Tensor:
        cond = self.cls_emb(label)
        x = self.drop(self.tok_emb(code) + self.pos_emb(torch.arange(self.length)))
        x = torch.cat([x, self.reg_tokens.weight.expand(len(x), -1, -1)], dim=1)
        for layer in self.transformer.layers:
            x = layer(x, cond)
        return self.head(self.last_norm(x, cond)[:, : self.length])

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the masked positions, a random share of each row where no mask is given."""
        if order is None:
            share = torch.arccos(torch.rand(len(ids), 1)) / (math.pi / 2)
            order = torch.rand(ids.shape) < share
        logits = self._logits(ids.masked_fill(order, self.c["codebook_size"]), label)
        return F.cross_entropy(logits[order], ids[order])

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids; guidance c + (scale - 1) (c - u)."""
        rows, steps, length = len(label), self.c["step"], self.length
        code, known = torch.full((rows, length), self.c["codebook_size"]), 0
        both = torch.cat([label, torch.full_like(label, self.c["nclass"])])
        for step in range(steps):
            upto = max(step + 1, int((1 - math.acos((step + 1) / steps) / (math.pi / 2)) * length))
            cond, null = self._logits(torch.cat([code, code]), both).chunk(2)
            logits = scale * cond - (scale - 1) * null
            drawn = draw(logits, 1.0, top_k, top_p)
            place = self.visited[known:upto]
            code[:, place] = drawn[:, place]
            known = upto
        return code


def halton(side: int) -> list[int]:
    """Positions of a grid in the sequence of the bases 2 (rows) and 3 (columns)."""
    found: dict[int, None] = {}
    index = 0
    while len(found) < side * side:
        index += 1
        found.setdefault(int(inverse(index, 2) * side) * side + int(inverse(index, 3) * side))
    return list(found)


def inverse(index: int, base: int) -> float:
    """The digits of an index mirrored at the point."""
    result, part = 0.0, 1.0
    while index:
        part /= base
        index, digit = divmod(index, base)
        result += digit * part
    return result

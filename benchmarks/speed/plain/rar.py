"""RAR (arXiv:2411.00776) as published: adaptive norms a position, all places at every step, caches that grow by ``cat``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.plain.llama import draw


class Attention(nn.Module):
    """Self-attention with normed queries and keys."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads, eps=1e-6), nn.LayerNorm(dim // heads, eps=1e-6)
        self.cache: tuple[Tensor, Tensor] | None = None
        self.caching = False
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows, slots, dim = x.shape
        q, k, v = self.qkv(x).reshape(rows, slots, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.caching:
            k, v = self.cache = (k, v) if self.cache is None else (torch.cat([self.cache[0], k], 2), torch.cat([self.cache[1], v], 2))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.drop(self.proj(out.transpose(1, 2).reshape(rows, slots, dim)))


class MLP(nn.Module):
    """Two maps around an exact GELU."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    """Both branches shifted, scaled and gated by the condition of each position."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, dropout = c["hidden_size"], c.get("dropout", 0.0)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, c["num_attention_heads"], dropout)
        self.mlp = MLP(dim, c["intermediate_size"], dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, mask: Tensor | None, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Final(nn.Module):
    """The norm before the head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


class RAR(nn.Module):
    """Class-conditional; ``order`` (B, L) in training, raster in sampling."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.c, self.length, dim = c, c["image_seq_len"], c["hidden_size"]
        self.embeddings = nn.Embedding(c["codebook_size"] + 1 + c["condition_num_classes"] + 1, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.length + 1024, dim))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, self.length + 1024, dim))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, self.length + 100, dim))
        self.blocks = nn.ModuleList([Block(c) for _ in range(c["num_hidden_layers"])])
        self.adaln_before_head, self.lm_head = Final(dim), nn.Linear(dim, c["codebook_size"])
        self.mask = torch.tril(torch.ones(self.length + 2, self.length + 2, dtype=torch.bool))
        self.drop = nn.Dropout(c.get("dropout", 0.0))

    def _logits(self, ids: Tensor, label: Tensor, order: Tensor, caching: bool) -> Tensor:
        """Logits of all positions but the leading one, or with caches of the newest."""
        rows = len(label)
        e = self.embeddings(torch.cat([label[:, None] + self.c["codebook_size"] + 1, ids], dim=1))
        condition = e[:, :1]
        places, aims = self.pos_embed.repeat(rows, 1, 1), self.target_aware_pos_embed.repeat(rows, 1, 1)
        index = (order + 2)[:, :, None].expand(-1, -1, places.shape[2])
        x = self.drop(torch.cat([self.cls_token.expand(rows, -1, -1), e], dim=1))
        x = x + torch.cat([places[:, :2], places.gather(1, index)], dim=1)[:, : x.shape[1]]
        x = x + torch.cat([torch.zeros_like(x[:, :1]), aims.gather(1, index), torch.zeros_like(x[:, -1:])], dim=1)[:, : x.shape[1]]
        mask: Tensor | None = self.mask[: x.shape[1], : x.shape[1]]
        c = condition + self.timesteps_embeddings[:, : x.shape[1]]
        if caching and self.blocks[0].attn.cache is not None:
            x, c, mask = x[:, -1:], c[:, -1:], None
        for block in self.blocks:
            x = block(x, mask, c)
        if not caching:
            x, c = x[:, 1:], c[:, 1:]
        return self.lm_head(self.adaln_before_head(x, c))

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in a random order of each row where none is given."""
        order = torch.rand(ids.shape).argsort(1) if order is None else order
        target = ids.gather(1, order)
        logits = self._logits(target, label, order, False)[:, :-1]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids in raster order; guidance grows as a power cosine."""
        rows, length = len(label), self.length
        ids = torch.zeros(rows, 0, dtype=torch.long)
        both = torch.cat([label, torch.full_like(label, self.c["condition_num_classes"])])
        raster = torch.arange(length)[None].expand(2 * rows, -1)
        for block in self.blocks:
            block.attn.caching, block.attn.cache = True, None
        for step in range(length):
            grown = (1 - math.cos(math.pi * (step / length) ** self.c["guidance_scale_pow"])) / 2
            logits = self._logits(torch.cat([ids, ids]), both, raster, True)[:, -1]
            cond, null = logits.chunk(2)
            drawn = draw(null + (cond - null) * ((scale - 1) * grown + 1), self.c["temperature"], top_k, top_p)
            ids = torch.cat([ids, drawn[:, None]], dim=1)
        for block in self.blocks:
            block.attn.caching, block.attn.cache = False, None
        return ids

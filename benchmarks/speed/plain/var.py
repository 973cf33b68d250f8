"""VAR (arXiv:2404.02905) as published: scale after scale, both halves of guidance in one batch, caches that grow by ``cat``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Given = tuple[Tensor, ...]


class Attention(nn.Module):
    """Cosine attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim), persistent=False)
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.cache: tuple[Tensor, Tensor] | None = None
        self.caching = False

    zero_k_bias: Tensor

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows, slots, dim = x.shape
        qkv = F.linear(x, self.mat_qkv.weight, torch.cat([self.q_bias, self.zero_k_bias, self.v_bias]))
        q, k, v = qkv.view(rows, slots, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.scale_mul_1H11.clamp_max(math.log(100)).exp()
        q, k = F.normalize(q, dim=-1).mul(scale), F.normalize(k, dim=-1)
        if self.caching:
            k, v = self.cache = (k, v) if self.cache is None else (torch.cat([self.cache[0], k], 2), torch.cat([self.cache[1], v], 2))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(rows, slots, dim))


class FFN(nn.Module):
    """Two maps around a GELU (tanh)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Adaptive norms without weights; the block's map of the condition runs at every scale."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim = c["embed_dim"]
        self.attn, self.ffn = Attention(dim, c["num_heads"]), FFN(dim, round(dim * c["mlp_ratio"]))
        self.norm = nn.LayerNorm(dim, eps=c["norm_eps"], elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, cond: Tensor, bias: Tensor | None) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.ada_lin(cond).view(-1, 1, 6, x.shape[-1]).unbind(2)
        x = x + self.attn(self.norm(x).mul(scale1.add(1)).add_(shift1), bias).mul_(gamma1)
        return x + self.ffn(self.norm(x).mul(scale2.add(1)).add_(shift2)).mul(gamma2)


class Head(nn.Module):
    """The norm before the logits."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c["embed_dim"], eps=c["norm_eps"], elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c["embed_dim"], 2 * c["embed_dim"]))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond).view(-1, 1, 2, x.shape[-1]).unbind(2)
        return self.norm(x).mul(scale.add(1)).add_(shift)


class Phi(nn.Conv2d):
    """Half of the input, half of its convolution."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mul(0.5) + super().forward(h).mul_(0.5)


class Phis(nn.Module):
    """Four of them, the nearest tick serves a scale."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList([Phi(channels, channels, 3, padding=1) for _ in range(count)])
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        self.ticks = np.linspace(edge, 1 - edge, count)  # ties are decided by double precision

    def forward(self, h: Tensor, at: float) -> Tensor:
        return self.qresi_ls[int(np.argmin(np.abs(self.ticks - at)))](h)


class Quantize(nn.Module):
    """The tokenizer's codes and convolutions, frozen."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.patch_nums, self.channels = c["patch_nums"], c["Cvae"]
        self.embedding = nn.Embedding(c["vocab_size"], c["Cvae"])
        self.quant_resi = Phis(c["Cvae"], c["share_quant_resi"])
        self.requires_grad_(False)

    def next_input(self, scale: int, f_hat: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """f_hat with this scale's codes, and what the next scale is given."""
        last, side = len(self.patch_nums) - 1, self.patch_nums[-1]
        h = self.embedding(ids).transpose(1, 2).reshape(len(ids), self.channels, self.patch_nums[scale], self.patch_nums[scale])
        if scale < last:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        f_hat = f_hat.add_(self.quant_resi(h, scale / last))
        return f_hat, F.interpolate(f_hat, size=(self.patch_nums[scale + 1],) * 2, mode="area") if scale < last else f_hat

    @torch.no_grad()
    def inputs(self, ids: Tensor) -> Tensor:
        """Teacher forcing: what all scales but the first are given, (B, L - 1, C)."""
        f_hat, found = ids.new_zeros(len(ids), self.channels, self.patch_nums[-1], self.patch_nums[-1], dtype=torch.float32), []
        for scale, part in enumerate(ids.split([n * n for n in self.patch_nums], dim=1)[:-1]):
            f_hat, following = self.next_input(scale, f_hat, part)
            found.append(following.flatten(2).transpose(1, 2))
        return torch.cat(found, dim=1)


def draw(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Ids: top-k, then the nucleus by an ascending sort of the whole vocabulary, then multinomial."""
    if top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(top_k, largest=True, sorted=False, dim=-1)[0].amin(-1, keepdim=True), -torch.inf)
    if top_p > 0:
        value, index = logits.sort(dim=-1, descending=False)
        gone = value.softmax(-1).cumsum_(-1) <= 1 - top_p
        gone[..., -1:] = False
        logits = logits.masked_fill(gone.scatter(-1, index, gone), -torch.inf)
    return torch.multinomial(logits.softmax(-1).view(-1, logits.shape[-1]), 1, replacement=True).view(logits.shape[:-1])


class VAR(nn.Module):
    """Class-conditional."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        dim, self.c, self.patch_nums = c["embed_dim"], c, c["patch_nums"]
        self.length = sum(n * n for n in self.patch_nums)
        self.quantize, self.word_embed = Quantize(c), nn.Linear(c["Cvae"], dim)
        self.class_emb, self.pos_start = nn.Embedding(c["num_classes"] + 1, dim), nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_1LC, self.lvl_embed = nn.Parameter(torch.zeros(1, self.length, dim)), nn.Embedding(len(self.patch_nums), dim)
        self.blocks = nn.ModuleList([Block(c) for _ in range(c["depth"])])
        self.head_nm, self.head = Head(c), nn.Linear(dim, c["vocab_size"])
        level = torch.cat([torch.full((n * n,), i) for i, n in enumerate(self.patch_nums)])[None]
        self.level = level
        self.bias = torch.where(level[:, :, None] >= level[:, None], 0.0, -torch.inf)[:, None].contiguous()

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy."""
        cond = self.class_emb(label)
        x = torch.cat([cond[:, None] + self.pos_start, self.word_embed(self.quantize.inputs(ids))], dim=1)
        x = x + self.lvl_embed(self.level.expand(len(ids), -1)) + self.pos_1LC
        for block in self.blocks:
            x = block(x, cond, self.bias)
        logits = self.head(self.head_nm(x.float(), cond))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), ids.view(-1), reduction="none").view(len(ids), -1).mean(-1).mean()

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids; guidance (1 + t) c - t u grows to ``scale`` - 1."""
        rows = len(label)
        cond = self.class_emb(torch.cat([label, torch.full_like(label, self.c["num_classes"])]))
        place = self.lvl_embed(self.level) + self.pos_1LC
        x = cond[:, None] + self.pos_start + place[:, :1]
        f_hat = x.new_zeros(rows, self.c["Cvae"], self.patch_nums[-1], self.patch_nums[-1])
        for block in self.blocks:
            block.attn.caching, block.attn.cache = True, None
        ids, known = [], 0
        for step, side in enumerate(self.patch_nums):
            known += side * side
            for block in self.blocks:
                x = block(x, cond, None)
            c, u = self.head(self.head_nm(x, cond)).chunk(2)
            t = (scale - 1) * step / (len(self.patch_nums) - 1)
            ids.append(draw((1 + t) * c - t * u, top_k, top_p))
            f_hat, following = self.quantize.next_input(step, f_hat, ids[-1])
            if known < self.length:
                area = self.patch_nums[step + 1] ** 2
                x = self.word_embed(following.view(rows, self.c["Cvae"], -1).transpose(1, 2)) + place[:, known : known + area]
                x = x.repeat(2, 1, 1)
        for block in self.blocks:
            block.attn.caching, block.attn.cache = False, None
        return torch.cat(ids, dim=1)

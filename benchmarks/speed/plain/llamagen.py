"""LlamaGen (arXiv:2406.06525) as published: one token a step, both halves of guidance in one batch, a cache of the full length."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.plain.llama import Block, KVCache, Labels, RMSNorm, draw, rotary_table


class LlamaGen(nn.Module):
    """Class-conditional."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.c, self.length = c, c["block_size"]
        self.cls_embedding, self.tok_embeddings = Labels(c), nn.Embedding(c["vocab_size"], c["dim"])
        self.layers = nn.ModuleList([Block(c) for _ in range(c["n_layer"])])
        self.norm, self.output = RMSNorm(c["dim"], c["norm_eps"]), nn.Linear(c["dim"], c["vocab_size"], bias=False)
        self.table = rotary_table(round(self.length**0.5), c["dim"] // c["n_head"], c["rope_base"], 1)
        self.tok_dropout = nn.Dropout(c.get("dropout", 0.0))

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy."""
        x = torch.cat([self.cls_embedding(label)[:, None], self.tok_embeddings(ids[:, :-1])], dim=1)
        x = self.tok_dropout(x)
        for layer in self.layers:
            x = layer(x, self.table[: x.shape[1]])
        logits = self.output(self.norm(x)).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), ids.reshape(-1))

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids with guidance u + scale (c - u)."""
        rows, total = 2 * len(label), self.length + 1
        heads = self.c["n_head"]
        for layer in self.layers:
            layer.attention.cache = KVCache(rows, heads, total, self.c["dim"] // heads)
        causal = torch.tril(torch.ones(total, total, dtype=torch.bool)).unsqueeze(0).repeat(rows, 1, 1)
        x = self.cls_embedding(torch.cat([label, torch.full_like(label, self.c["num_classes"])]))[:, None]
        ids: list[Tensor] = []
        for step in range(self.length):
            at = torch.tensor([step])
            mask = causal[:, None, at]
            for layer in self.layers:
                x = layer(x, self.table[at], at, mask)
            cond, null = self.output(self.norm(x)).float().chunk(2)
            ids.append(draw((null + scale * (cond - null))[:, -1], 1.0, top_k, top_p)[:, None])
            x = self.tok_embeddings(torch.cat([ids[-1], ids[-1]]))
        for layer in self.layers:
            layer.attention.cache = None
        return torch.cat(ids, dim=1)

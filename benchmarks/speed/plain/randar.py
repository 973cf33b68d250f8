"""RandAR (arXiv:2412.01827) as published: instructions between tokens, parallel steps on a cache of the full length."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.plain.llama import Block, KVCache, Labels, RMSNorm, draw, rotary_table, rotate


class RandAR(nn.Module):
    """Class-conditional; ``order`` (B, L) are the positions in the sequence in which they are predicted."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        self.c, self.length, dim = c, c["block_size"], c["dim"]
        self.cls_embedding, self.tok_embeddings = Labels(c), nn.Embedding(c["vocab_size"], dim)
        self.pos_instruct_embeddings = nn.Parameter(torch.zeros(1, dim))
        self.layers = nn.ModuleList([Block(c) for _ in range(c["n_layer"])])
        self.norm, self.output = RMSNorm(dim, c["norm_eps"]), nn.Linear(dim, c["vocab_size"], bias=False)
        self.table = rotary_table(round(self.length**0.5), dim // c["n_head"], c["rope_base"], 1)
        self.tok_dropout = nn.Dropout(c.get("dropout", 0.0))

    def _instructions(self, table: Tensor) -> Tensor:
        """(B, n, D) for rotary tables (B, n, E/2, 2) of the places."""
        vector = self.pos_instruct_embeddings.view(1, 1, self.c["n_head"], -1).expand(*table.shape[:2], -1, -1)
        return rotate(vector, table).flatten(2)

    def loss(self, ids: Tensor, label: Tensor, order: Tensor | None = None) -> Tensor:
        """Mean cross-entropy, in a random order of each row where none is given."""
        order = torch.rand(ids.shape).argsort(1) if order is None else order
        target, table = ids.gather(1, order), self.table[1:][order]
        pairs = torch.stack([self._instructions(table), self.tok_embeddings(target)], dim=2).flatten(1, 2)
        x = self.tok_dropout(torch.cat([self.cls_embedding(label)[:, None], pairs[:, :-1]], dim=1))
        both = torch.stack([table, table], dim=2).flatten(1, 2)
        table = torch.cat([self.table[:1].expand(len(ids), 1, -1, -1), both[:, :-1]], dim=1)
        for layer in self.layers:
            x = layer(x, table)
        logits = self.output(self.norm(x)).float()[:, 1::2]
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))

    @torch.no_grad()
    def sample(self, label: Tensor, order: Tensor | None, scale: float, top_k: int, top_p: float) -> Tensor:
        """(B, L) ids; guidance grows from 1 to ``scale`` with the share of tokens that are known."""
        rows, length, heads = len(label), self.length, self.c["n_head"]
        order = torch.rand(rows, length).argsort(1) if order is None else order
        total, steps = 2 * length + 1, self.c["num_inference_steps"]
        for layer in self.layers:
            layer.attention.cache = KVCache(2 * rows, heads, total + length, self.c["dim"] // heads)
        causal = torch.tril(torch.ones(total + length, total + length, dtype=torch.bool)).unsqueeze(0).repeat(2 * rows, 1, 1)
        table = self.table[1:][order]
        ids = torch.zeros(rows, length, dtype=torch.long)
        held = self.cls_embedding(torch.cat([label, torch.full_like(label, self.c["num_classes"])]))[:, None]
        held_table = self.table[:1].expand(rows, 1, -1, -1)
        known = begin = 0
        step = 0
        while known < length:
            step += 1
            upto = min(length, max(known + 1, int((1 - math.cos(math.pi / 2 * step / steps)) * length + 1))) if step < steps else length
            asked = table[:, known:upto]
            query = self._instructions(asked)
            x = torch.cat([held, query.repeat(2, 1, 1)], dim=1)
            at = torch.arange(begin, begin + x.shape[1])
            turned, mask = torch.cat([held_table, asked], dim=1).repeat(2, 1, 1, 1), causal[:, None, at]
            for layer in self.layers:
                x = layer(x, turned, at, mask)
            cond, null = self.output(self.norm(x[:, -(upto - known) :])).float().chunk(2)
            weight = 1 + (scale - 1) * known / length
            drawn = draw(null + weight * (cond - null), 1.0, top_k, top_p)
            ids.scatter_(1, order[:, known:upto], drawn)
            # What the next step is given: the tokens, between the instructions but the first, which is cached.
            begin += held.shape[1] + 1
            pairs = torch.stack([query, self.tok_embeddings(drawn)], dim=2).flatten(1, 2)[:, 1:]
            held, held_table = pairs.repeat(2, 1, 1), torch.stack([asked, asked], dim=2).flatten(1, 2)[:, 1:]
            known = upto
        for layer in self.layers:
            layer.attention.cache = None
        return ids

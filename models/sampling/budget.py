"""Caches of attention that keep some of their slots, as many as a budget allows each row and head.

Shapes: B rows, H heads, S new slots, T kept slots, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.parts.cache import LayerCache, attend
from tokenloom.models.parts.visibility import Visibility


class BudgetCache(LayerCache):
    """Grows with what is appended; ``keep`` forgets all but the slots of the highest scores.

    Rows and heads may keep different numbers: buffers are as long as the largest, and ``alive_BHT`` says which slots there are.
    """

    def __init__(self, rows: int, heads: int, slots: int, width: int, like: Tensor) -> None:
        super().__init__(rows, heads, 0, width, like)
        self.alive_BHT = torch.zeros((rows, heads, 0), dtype=torch.bool, device=like.device)
        self.new, self.whole = 0, True  # whole: nothing was forgotten
        self.asked: tuple[Tensor, float] | None = None

    def append(self, key_BHSE: Tensor, value_BHSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all kept slots, (B, H, T, E) each."""
        self.key_BHTE, self.value_BHTE = (
            torch.cat([old, new], 2) for old, new in ((self.key_BHTE, key_BHSE), (self.value_BHTE, value_BHSE))
        )
        self.new = key_BHSE.shape[2]
        self.alive_BHT = F.pad(self.alive_BHT, (0, self.new), value=True)
        self.used = self.key_BHTE.shape[2]
        return self.key_BHTE, self.value_BHTE

    def attend(self, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, visibility: Visibility, factor: float) -> Tensor:
        k, v = self.append(k_BHSE, v_BHSE)
        self.asked = q_BHSE, factor
        if self.whole:
            return attend(q_BHSE, k, v, visibility, factor)
        out = F.scaled_dot_product_attention(q_BHSE, k, v, attn_mask=self.alive_BHT[:, :, None], scale=factor)
        return out.transpose(1, 2).flatten(2)

    def truncate(self, slots: int) -> None:
        """Nothing: each step's slots are counted by the budget alone."""

    def attention(self, queries: int) -> Tensor:
        """(B, H, n, T) what the last call's slots, of which n evenly spread ones are asked, attended to."""
        assert self.asked is not None
        q, factor = self.asked
        at = torch.linspace(0, q.shape[2] - 1, min(queries, q.shape[2]), device=q.device).round().long()
        score = (q[:, :, at] @ self.key_BHTE.transpose(2, 3)) * factor
        return score.masked_fill(~self.alive_BHT[:, :, None], -torch.inf).softmax(-1)

    def keep(self, score_BHT: Tensor, count_BH: Tensor) -> None:
        """Forget all but the ``count`` slots of the highest score, of each row and head."""
        total = self.key_BHTE.shape[2]
        most = min(int(count_BH.max()), total)
        order_BHT = score_BHT.masked_fill(~self.alive_BHT, -torch.inf).argsort(dim=2, descending=True, stable=True)[:, :, :most]
        there = self.alive_BHT.gather(2, order_BHT) & (torch.arange(most, device=count_BH.device) < count_BH[:, :, None])
        index = order_BHT.sort(2)
        self.alive_BHT = there.gather(2, index.indices)
        at = index.values[..., None].expand(-1, -1, -1, self.key_BHTE.shape[3])
        self.key_BHTE, self.value_BHTE = self.key_BHTE.gather(2, at), self.value_BHTE.gather(2, at)
        self.whole, self.used = self.whole and most == total and bool(self.alive_BHT.all()), most


class LowRankCache(LayerCache):
    """Attention by features of queries and keys whose products are the exponential's Taylor polynomial (arXiv:2302.13214, used for VAR by
    arXiv:2501.04377): scores are never formed.

    Where the bound on scores of a row and head, the product of the greatest norms, is above ``norm``, attention is exact.
    """

    def __init__(self, rows: int, heads: int, slots: int, width: int, like: Tensor, **fields: Any) -> None:
        super().__init__(rows, heads, slots, width, like)
        self.degree, self.norm = int(fields["degree"]), float(fields["norm"])
        self.reached_BH: Tensor | None = None  # the bound on scores, of the last call

    def attend(self, q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, visibility: Visibility, factor: float) -> Tensor:
        k, v = self.append(k_BHSE, v_BHSE)
        q = q_BHSE * factor
        self.reached_BH = q.norm(dim=-1).amax(-1) * k.norm(dim=-1).amax(-1)
        left, right = features(q, self.degree), features(k, self.degree)
        by_keys = right.transpose(2, 3) @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
        out = left @ by_keys
        near = out[..., :-1] / out[..., -1:]
        exact = attend(q_BHSE, k, v, visibility, factor).unflatten(2, (q.shape[1], -1)).transpose(1, 2)
        out = torch.where((self.reached_BH <= self.norm)[:, :, None, None], near, exact)
        return out.transpose(1, 2).flatten(2)


def features(x: Tensor, degree: int) -> Tensor:
    """(…, 1 + E + E² + …) such that products of two are the Taylor polynomial of this degree of exp(x · y)."""
    parts, power = [torch.ones_like(x[..., :1])], torch.ones_like(x[..., :1])
    for order in range(1, degree + 1):
        power = (power.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / order**0.5
        parts.append(power)
    return torch.cat(parts, -1)

"""Filters of logits, and ids drawn from them.  Shapes: (…, V) logits over a vocabulary of V."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits with all but the k largest at -inf; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    floor = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < floor, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Nucleus (arXiv:1904.09751): the fewest likeliest entries whose probability reaches p; 1 keeps all."""
    if p >= 1:
        return logits
    value, index = logits.sort(dim=-1)
    # Ascending: an entry goes when it and everything below it sum to at most 1 - p; the largest always stays.
    drop = value.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1].fill_(False)
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)


def inverse(logits: Tensor, uniform: Tensor) -> Tensor:
    """The ids (…) at which the cumulated softmax of logits passes numbers (…) in [0, 1); never one of probability zero."""
    cumulated = logits.float().softmax(-1).cumsum(-1)
    total = cumulated[..., -1:].contiguous()
    # The second one is the last id with a probability: where a number rounds up to the total, nothing passes it.
    found = torch.searchsorted(cumulated, uniform.unsqueeze(-1) * total, right=True)
    return torch.minimum(found, torch.searchsorted(cumulated, total)).squeeze(-1)

"""Filters of logits, and ids drawn from them.  Shapes: (…, V) logits over a vocabulary of V."""

from __future__ import annotations

import torch
from torch import Tensor


def keep(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits with all but the k largest, and of these all but the nucleus, at -inf; 0 and 1 keep all.

    The nucleus (arXiv:1904.09751) is the fewest likeliest of the k whose probability among the k reaches p.  Both filters are one
    number a row, the least logit that is kept, so that only k values are sorted.  Equal logits stay or go together: those equal to
    the least one stay, on every machine.
    """
    k = top_k if 0 < top_k < logits.shape[-1] else logits.shape[-1]
    if top_p < 1:
        top = logits.topk(k, dim=-1).values if k < logits.shape[-1] else logits.sort(dim=-1, descending=True).values
        # From the least upwards: a value goes when it and everything below it sum to at most 1 - p; the largest always stays.
        dropped = (top.softmax(-1).flip(-1).cumsum(-1) <= 1 - top_p).sum(-1, keepdim=True)
        least = top.gather(-1, (k - 1 - dropped).clamp(min=0))
    elif k < logits.shape[-1]:
        least = logits.topk(k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    else:
        return logits
    return logits.masked_fill(logits < least, -torch.inf)


def inverse(logits: Tensor, uniform: Tensor) -> Tensor:
    """The ids (…) at which the cumulated softmax of logits passes numbers (…) in [0, 1); never one of probability zero."""
    cumulated = logits.float().softmax(-1).cumsum(-1)
    total = cumulated[..., -1:].contiguous()
    # The second one is the last id with a probability: where a number rounds up to the total, nothing passes it.
    found = torch.searchsorted(cumulated, uniform.unsqueeze(-1) * total, right=True)
    return torch.minimum(found, torch.searchsorted(cumulated, total)).squeeze(-1)

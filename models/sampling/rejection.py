"""Rejection sampling of drafts: tokens of a cheap distribution become tokens of the target one (arXiv:2211.17192, algorithm 1).

Shapes: B rows, n drafted tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def acceptable(target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor:
    """(B, n) whether each token, drawn from ``draft``, holds: with probability min(1, target / draft)."""
    p, q = (each.gather(-1, token_Bn.unsqueeze(-1)).squeeze(-1) for each in (target_BnV, draft_BnV))
    return uniform_Bn * q < p


def residual(target_BV: Tensor, draft_BV: Tensor) -> Tensor:
    """``max(0, target - draft)``, not normalised: what a rejected token is drawn from again; the target where nothing is left."""
    rest = (target_BV - draft_BV).clamp_min(0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, target_BV)


def draw_from(p: Tensor, uniform: Tensor) -> Tensor:
    """Ids (…) by the inverse distribution function of (…, V) weights, of which each row has one above zero; never one of weight zero."""
    cumulated = p.double().cumsum(-1)
    total = cumulated[..., -1:].contiguous()
    found = torch.searchsorted(cumulated, uniform.double().unsqueeze(-1) * total, right=True)
    return torch.minimum(found, torch.searchsorted(cumulated, total)).squeeze(-1)


def leading(holds_Bn: Tensor) -> Tensor:
    """(B,) how many hold from the first on."""
    return holds_Bn.long().cumprod(1).sum(1)

"""Rules by which a draft holds although the net alone would have drawn it less often: what is accepted, and what a rejected one becomes.

Shapes: B rows, n drafted tokens, V vocabulary, k neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.parts.heads.categorical import Categorical, Tied
from tokenloom.models.sampling.rejection import residual


class Rule(ABC):
    """Rejection sampling as it is relaxed by one method."""

    @abstractmethod
    def holds(self, target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor:
        """(B, n) whether each drafted token holds, by uniform numbers."""

    def rest(self, target_B1V: Tensor, draft_B1V: Tensor, token_B1: Tensor) -> Tensor:
        """(B, 1, V) weights of what a rejected token is drawn from."""
        return residual(target_B1V, draft_B1V)


def of(values: Tensor, token_Bn: Tensor) -> Tensor:
    """(B, n) the probability of each token."""
    return values.gather(-1, token_Bn.unsqueeze(-1)).squeeze(-1)


def latents(model: Any) -> Tensor | None:
    """(V, D) a direction for each code: rows of the head's output map; None where it has none of its own."""
    head = model.head
    if type(head) is Tied:
        return F.normalize(head._table[0].weight[: model.layout.vocabulary], dim=-1)
    return F.normalize(head.out.weight, dim=-1) if type(head) is Categorical else None


def latents_refusal(model: Any) -> str | None:
    """Why codes of this generator cannot be compared; None where they can."""
    return None if type(model.head) in (Categorical, Tied) else f"the head {type(model.head).__qualname__} has no direction for each code"


@dataclass(frozen=True)
class Grouped(Rule):
    """GSD's clusters (arXiv:2508.07747): the codes within ``half`` places of the drafted one, sorted by the net's probability.

    Of these those whose probability differs by less than ``near`` and whose direction by less than ``apart`` (one less the cosine).
    """

    latent_VD: Tensor
    half: int
    near: float
    apart: float

    def holds(self, target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor:
        """With probability min(1, q(cluster) / p(cluster))."""
        order = target_BnV.argsort(dim=-1, descending=True, stable=True)
        place_Bn = (order == token_Bn.unsqueeze(-1)).long().argmax(-1)
        offset = torch.arange(-self.half, self.half + 1, device=token_Bn.device)
        around = place_Bn.unsqueeze(-1) + offset
        inside = (around >= 0) & (around < target_BnV.shape[-1])
        code = order.gather(-1, around.clamp(0, target_BnV.shape[-1] - 1))
        mine = of(target_BnV, token_Bn).unsqueeze(-1)
        like = (target_BnV.gather(-1, code) - mine).abs() < self.near
        close = 1 - (self.latent_VD[code] * self.latent_VD[token_Bn].unsqueeze(-2)).sum(-1) < self.apart
        member = inside & ((like & close) | (offset == 0))
        q, p = ((each.gather(-1, code) * member).sum(-1) for each in (target_BnV, draft_BnV))
        return uniform_Bn * p < q


@dataclass(frozen=True)
class Neighbours(Rule):
    """LANTERN's relaxation (arXiv:2410.03355, eqs. 3 to 5): a drafted code x is given the probability of its nearest codes too, as many as
    have less than ``bound`` in all, so that the net's distribution is moved by less than that in total variation."""

    near_Vk: Tensor
    bound: float

    def moved(self, target_BnV: Tensor, token_Bn: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours (B, n, k) of the drafted codes, and the probability that each gives away."""
        code = self.near_Vk[token_Bn]
        mass = target_BnV.gather(-1, code)
        return code, mass * (mass.cumsum(-1) < self.bound)

    def holds(self, target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor:
        """With probability min(1, q'(x) / p(x)), where q' is what is moved to x and what it had."""
        q = of(target_BnV, token_Bn) + self.moved(target_BnV, token_Bn)[1].sum(-1)
        return uniform_Bn * of(draft_BnV, token_Bn) < q

    def rest(self, target_B1V: Tensor, draft_B1V: Tensor, token_B1: Tensor) -> Tensor:
        """What q' has more than p."""
        code, mass = self.moved(target_B1V, token_B1)
        moved = target_B1V.scatter_add(-1, code, -mass).scatter_add(-1, token_B1.unsqueeze(-1), mass.sum(-1, keepdim=True))
        return residual(moved.clamp_min(0), draft_B1V)


def neighbours(latent_VD: Tensor, count: int) -> Tensor:
    """(V, k) the codes that are nearest to each, itself not among them, nearest first."""
    like_VV = (latent_VD @ latent_VD.T).fill_diagonal_(-torch.inf)
    return like_VV.topk(min(count, len(latent_VD) - 1), dim=-1).indices


@dataclass(frozen=True)
class BigLittle(Rule):
    """BiLD's two policies (arXiv:2302.07863): the little model hands over where its likeliest token has less than ``fallback``; the big one
    takes back what it gives a loss of more than ``rollback`` nats, and draws that token itself."""

    fallback: float
    rollback: float

    def holds(self, target_BnV: Tensor, draft_BnV: Tensor, token_Bn: Tensor, uniform_Bn: Tensor) -> Tensor:
        """Neither policy speaks against it."""
        return (draft_BnV.amax(-1) >= self.fallback) & (-of(target_BnV, token_Bn).log() <= self.rollback)

    def rest(self, target_B1V: Tensor, draft_B1V: Tensor, token_B1: Tensor) -> Tensor:
        """The big model's own distribution."""
        return target_B1V

"""Discrete noise: how tokens are lost on the way from data to noise, and what is known of an earlier state from a later one.

Every token is lost by itself.  ``keep`` is the share of tokens that still carry their value at a time, 1 for data and 0 for
noise.  Shapes: B rows, L positions, V codes, Z states of a token (V, or one more with [MASK]); shares are (B, 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config


class Noise(config.Config, ABC):
    """A kind of noise.  Of two times, ``t`` is the noisier and ``s`` the one closer to the data."""

    #: States beyond the codes.
    extra: ClassVar[int] = 0

    @abstractmethod
    def corrupt(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        """Draw x_t given x_0 with two uniform numbers a token: whether it is lost, and what it becomes."""

    @abstractmethod
    def posterior(self, p_BLV: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor) -> Tensor:
        """(B, L, Z) distribution of x_s given x_t, where the data is distributed as ``p_BLV``:
        ``sum_{x_0} p(x_0) q(x_s | x_t, x_0)`` (arXiv:2107.03006, eq. 4)."""

    @abstractmethod
    def loss(self, logits_BLV: Tensor, ids_BL: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor, steps: int) -> Tensor:
        """(B, L) losses whose mean over times and noise is what is trained."""

    @abstractmethod
    def given(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        """What known tokens are shown as at a time, for in-painting."""


@dataclass(frozen=True, kw_only=True)
class Uniform(Noise, tag="noise.uniform", label="noisy tokens"):
    """A lost token becomes any code (multinomial diffusion, arXiv:2102.05379).

    The loss is the variational bound in nats a token, KL(q(x_s | x_t, x_0) || p(x_s | x_t)) times the number of steps, plus
    ``cross_entropy`` times that of x_0.
    """

    cross_entropy: float = 0.0

    def corrupt(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        return torch.where(lost_BL < keep_B1, ids_BL, (other_BL * codes).long().clamp_max(codes - 1))

    def given(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        return self.corrupt(ids_BL, keep_B1, lost_BL, other_BL, codes)

    def posterior(self, p_BLV: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor) -> Tensor:
        codes = p_BLV.shape[-1]
        s, t = keep_s.unsqueeze(-1), keep_t.unsqueeze(-1)
        stay = t / s
        here = F.one_hot(x_BL, codes).to(p_BLV)
        weight = p_BLV / (t * here + (1 - t) / codes).clamp_min(1e-30)  # p(x_0) / q(x_t | x_0)
        earlier = s * weight + (1 - s) / codes * weight.sum(-1, keepdim=True)  # sum over x_0 of that times q(x_s | x_0)
        return earlier * (stay * here + (1 - stay) / codes)  # times q(x_t | x_s)

    def loss(self, logits_BLV: Tensor, ids_BL: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor, steps: int) -> Tensor:
        log_p = logits_BLV.log_softmax(-1)
        true = self.posterior(F.one_hot(ids_BL, logits_BLV.shape[-1]).to(log_p), x_BL, keep_s, keep_t)
        mine = self.posterior(log_p.exp(), x_BL, keep_s, keep_t)
        kl = torch.xlogy(true, true) - true * mine.clamp_min(1e-30).log()
        loss = steps * kl.sum(-1)
        if self.cross_entropy:
            loss = loss - self.cross_entropy * log_p.gather(-1, ids_BL.unsqueeze(-1)).squeeze(-1)
        return loss


@dataclass(frozen=True, kw_only=True)
class Absorbing(Noise, tag="noise.absorbing", label="tokens or [MASK]"):
    """A lost token becomes [MASK] for good.

    The loss is the cross-entropy at masked positions: weighted by ``bound`` to the variational bound in nats a token, or ``even``, each
    masked token alike, one on average over positions for a share that falls evenly.
    """

    extra: ClassVar[int] = 1
    weight: Literal["bound", "even"] = "bound"

    def corrupt(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        return torch.where(lost_BL < keep_B1, ids_BL, codes)

    def given(self, ids_BL: Tensor, keep_B1: Tensor, lost_BL: Tensor, other_BL: Tensor, codes: int) -> Tensor:
        return ids_BL

    def posterior(self, p_BLV: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor) -> Tensor:
        codes = p_BLV.shape[-1]
        shown = ((keep_s - keep_t) / (1 - keep_t).clamp_min(1e-30)).unsqueeze(-1)
        masked = torch.cat([shown * p_BLV, (1 - shown).expand(*p_BLV.shape[:-1], 1)], dim=-1)
        return torch.where((x_BL == codes).unsqueeze(-1), masked, F.one_hot(x_BL, codes + 1).to(p_BLV))

    def loss(self, logits_BLV: Tensor, ids_BL: Tensor, x_BL: Tensor, keep_s: Tensor, keep_t: Tensor, steps: int) -> Tensor:
        nll = F.cross_entropy(logits_BLV.transpose(1, 2), ids_BL, reduction="none")
        masked = x_BL == logits_BLV.shape[-1]
        weight = steps * (keep_s - keep_t) / (1 - keep_t).clamp_min(1e-30) if self.weight == "bound" else 2.0
        return nll * masked * weight

"""How queries are compared with keys: what is done to both before the dot product, and its factor.

Shapes: B rows, H heads, S slots, E head width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added
from tokenloom.models.parts.norms import norm


class Similarity(config.Config, ABC):
    """A rule of comparison."""

    @abstractmethod
    def build(self, heads: int, head_width: int) -> Comparison:
        """Its module, which may have parameters."""


class Comparison(nn.Module, ABC):
    """``(q, k) -> (q, k, factor)``, with q (B, H, S, E) and k (B, H', S, E)."""

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]: ...


@dataclass(frozen=True, kw_only=True)
class Scaled(Similarity, tag="similarity.scaled"):
    """Dot products times ``gain / sqrt(E)``; the usual attention has gain 1, VAR without l2-norm 0.25."""

    gain: float = 1.0

    def build(self, heads: int, head_width: int) -> Comparison:
        return _Scaled(self.gain / math.sqrt(head_width))


class _Scaled(Comparison):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        return q, k, self.factor


@dataclass(frozen=True, kw_only=True)
class CosineSimilarity(Similarity, tag="similarity.cosine"):
    """Cosine similarity times a learned temperature per head, at most ``ceiling`` (arXiv:2111.09883, VAR)."""

    start: float = 4.0
    ceiling: float = 100.0

    def build(self, heads: int, head_width: int) -> Comparison:
        return _Cosine(self, heads)


class _Cosine(Comparison):
    def __init__(self, config: CosineSimilarity, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(config.start)))
        self.ceiling = math.log(config.ceiling)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        # Norms in float32: in half precision the squares overflow (sihyun-yu/REPA#46).
        temperature = self.temperature.clamp(max=self.ceiling).exp()
        return (F.normalize(q.float(), dim=-1) * temperature).to(k.dtype), F.normalize(k.float(), dim=-1).to(k.dtype), 1.0


@dataclass(frozen=True, kw_only=True)
class Normed(Similarity, tag="similarity.normed"):
    """Queries and keys of each head through a learned norm, then scaled dot products (arXiv:2302.05442, RAR); ``kind``: a layer norm, or
    a root-mean-square norm with weights, or with weights that are one more than its parameters."""

    eps: float = 1e-6
    kind: Added[Literal["layer", "rms", "rms_offset"]] = "layer"

    def build(self, heads: int, head_width: int) -> Comparison:
        return _Normed(self, head_width)


class _Normed(Comparison):
    def __init__(self, config: Normed, head_width: int) -> None:
        super().__init__()
        self.q, self.k = norm(config.kind, head_width, config.eps), norm(config.kind, head_width, config.eps)
        self.factor = 1 / math.sqrt(head_width)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        return self.q(q), self.k(k), self.factor


@dataclass(frozen=True, kw_only=True)
class RootMean(Similarity, tag="similarity.rms"):
    """Queries and keys divided by their root mean square over all heads, without weights (Halton-MaskGIT)."""

    eps: float = 1e-6

    def build(self, heads: int, head_width: int) -> Comparison:
        return _RootMean(self.eps, head_width)


class _RootMean(Comparison):
    def __init__(self, eps: float, head_width: int) -> None:
        super().__init__()
        self.eps, self.factor = eps, 1 / math.sqrt(head_width)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, float]:
        return self._over(q), self._over(k), self.factor

    def _over(self, x_BHSE: Tensor) -> Tensor:
        x = x_BHSE.float()
        return (x * torch.rsqrt(x.square().mean((1, 3), keepdim=True) + self.eps)).to(x_BHSE.dtype)

"""MLPs of the middle layers are left out for tokens that they no longer turn (FFN-SkipLLM, arXiv:2404.03865).

Shapes: B rows, S slots, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.limits import Range
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.sampling.decoders.layers.base import LayerDecoder
from tokenloom.models.sampling.decoders.scales.base import replace_caches
from tokenloom.models.sampling.session import DecodingSession


@dataclass(frozen=True, kw_only=True)
class FFNSkip(LayerDecoder, tag="decoder.ffn_skip"):
    """Once an MLP leaves a slot nearly as it was, the cosine of what goes in and what comes out at least ``alike``, the MLPs of the layers
    above it are left out for that slot, but for those of the last ``last`` layers.

    The first ``first`` layers and the first ``whole`` steps are always run whole; attention, and so the cache, is never left out.  With
    ``alike`` above 1 samples are those of the generator.
    """

    limits: ClassVar = {"alike": Range(-1, 2), "first": Range(0, 4096), "last": Range(0, 4096), "whole": Range(0, 1 << 20)}
    paper: ClassVar = "2404.03865"
    exact: ClassVar = False

    alike: float = 0.98
    first: int = 1
    last: int = 1
    whole: int = 1

    def opened(self, session: DecodingSession) -> None:
        shared = _Slots(self.alike)
        replace_caches(session, SkippingCache, shared=shared)
        layers: Any = session.cache
        for index, layer in enumerate(layers):
            layer.middle = self.first <= index < len(layers) - self.last

    def before(self, session: DecodingSession, step: int) -> None:
        layers: Any = session.cache
        layers[0].shared.begin(step >= self.whole)


@dataclass
class _Slots:
    """Which slots of the step at hand need no more MLPs of the middle, (B, S, 1)."""

    alike: float
    allowed: bool = False
    settled: Tensor | None = None
    skipped: int = 0

    def begin(self, allowed: bool) -> None:
        self.allowed, self.settled = allowed, None


class SkippingCache(LayerCache):
    """A layer whose MLP looks at what the layers below have settled."""

    def __init__(self, rows: int, heads: int, slots: int, width: int, like: Tensor, shared: _Slots) -> None:
        super().__init__(rows, heads, slots, width, like)
        self.shared, self.middle = shared, False

    def transformed(self, x_BSD: Tensor, mlp: Callable[[Tensor], Tensor]) -> Tensor:
        by = self.shared
        if not (self.middle and by.allowed):
            return mlp(x_BSD)
        if by.settled is not None and bool(by.settled.all()):
            by.skipped += 1
            return x_BSD
        y_BSD = mlp(x_BSD)
        settled = (F.cosine_similarity(x_BSD, y_BSD, dim=-1) >= by.alike).unsqueeze(-1)
        if by.settled is not None:
            y_BSD = torch.where(by.settled, x_BSD, y_BSD)
            settled = settled | by.settled
        by.settled = settled
        return y_BSD

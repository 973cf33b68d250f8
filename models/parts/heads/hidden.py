"""What a head draws from: hidden states, with those of the null condition under guidance.

Shapes: B rows, N predicted positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """Conditional hidden states (B, N, D), those of the null condition (None: no guidance), and the weight w of guidance."""

    cond_BND: Tensor
    null_BND: Tensor | None = None
    weight: float | Tensor = 0.0

    def guided(self, output: Callable[[Tensor], Tensor] = lambda h: h, of: int | None = None) -> Tensor:
        """An output of hidden states (logits, a noise prediction, …; by default the states themselves) under guidance.

        ``of`` (None: all) are the first channels that guidance mixes; the others are those of the conditional states.
        """
        cond = output(self.cond_BND)
        if self.null_BND is None:
            return cond
        mixed = guide(cond[..., :of], output(self.null_BND)[..., :of], self.weight)
        return mixed if of is None else torch.cat([mixed, cond[..., of:]], -1)


def guide(cond: Tensor, null: Tensor | None, weight: float | Tensor) -> Tensor:
    """Classifier-free guidance: ``(1 + w) cond - w null`` (arXiv:2207.12598, eq. 6)."""
    return cond if null is None else (1 + weight) * cond - weight * null

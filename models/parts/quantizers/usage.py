"""How much of a vocabulary is used: counts over all workers, for quantizers that learn no codebook from them.

Shapes: G groups (scales or codebooks), K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenloom.models.parts.collectives import all_reduce_sum
from tokenloom.models.parts.quantizers.codebook import counts, metrics


class Usage(nn.Module):
    """Moving averages of the counts of each group's codes; reported, never saved."""

    usage: Tensor
    _counts: Tensor

    def __init__(self, codes: int, groups: tuple[str, ...] = ("",), decay: float = 0.95) -> None:
        super().__init__()
        self.codes, self.groups, self.decay = codes, groups, decay
        self.register_buffer("usage", torch.zeros(len(groups), codes), persistent=False)
        self.register_buffer("_counts", torch.zeros(len(groups), codes), persistent=False)

    def count(self, groups: list[Tensor]) -> Tensor:
        """Counts (G, K) int64 of each group's ids."""
        return counts(groups, self.codes)

    @torch.no_grad()
    def observe(self, counts_GK: Tensor) -> None:
        """Add one micro-batch's counts."""
        self._counts += counts_GK.to(self._counts)

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """Use and perplexity per group and, for several groups, over all."""
        self.usage.lerp_(all_reduce_sum(self._counts), 1 - self.decay)
        self._counts.zero_()
        return metrics(self.usage, self.groups, self.decay)

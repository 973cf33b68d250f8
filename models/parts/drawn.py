"""Tokens drawn by a head, and what they were drawn from.

Shapes: B rows, N predicted positions, V vocabulary, Q codebooks, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn at N positions, (B, N), (B, N, Q) or (B, N, C), and the guided logits, (B, N, V) or (B, N, Q, V), if there are any."""

    data: Tensor
    logits: Tensor | None = None

    def logit_BN(self) -> Tensor:
        """The logits of what was drawn, summed over codebooks. They compare tokens of one position: positions differ by any constant."""
        return self._chosen(self._known())

    def log_probability_BN(self) -> Tensor:
        """The log-probability of what was drawn, summed over codebooks."""
        return self._chosen(self._known().log_softmax(-1))

    def _known(self) -> Tensor:
        if self.logits is None:
            raise ValueError("this head does not say how sure it is")
        return self.logits

    def _chosen(self, values: Tensor) -> Tensor:
        ids = self.data.view(values.shape[:-1]).unsqueeze(-1)
        return values.gather(-1, ids).flatten(2).sum(-1)

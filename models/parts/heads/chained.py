"""What heads share that draw the codebooks of a token one after another, by a small causal transformer at each position.

Shapes: M positions of all rows, E width of the small transformer, n codebooks at once, Q codebooks, V vocabulary of the largest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.categorical import full
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.visibility import Causal, Everything, Visibility


class Chained(Head):
    """The sequence of a position is ``[features, first codebook, second, …]``; entry q predicts codebook q, in the order of prediction.

    Concrete ones set ``net``, a linear map ``out`` for each codebook and ``place`` (1, Q), where entries stand.
    """

    net: Transformer
    out: nn.ModuleList
    place: Tensor

    @abstractmethod
    def known(self, book: int, ids_M: Tensor) -> Tensor:
        """The entry (M, E) that tells the ids of a codebook to the later ones."""

    def first(self, features_ME: Tensor) -> Tensor:
        """The first entry of the sequence."""
        return features_ME

    def run(
        self, x_MnE: Tensor, features_ME: Tensor, books: slice, visibility: Visibility, cache: list[LayerCache] | None = None
    ) -> Tensor:
        """Hidden states (M, n, E) of the entries of these codebooks."""
        modulation = features_ME[:, None]
        return self.net.norm.last(self.net.stack(x_MnE, self.place[:, books], visibility, modulation, cache), modulation)

    def taught(self, features_ME: Tensor, ids_MQ: Tensor) -> Tensor:
        """(M, Q, V) logits of each codebook given the true ids before it, in one pass; ids that a smaller codebook lacks have -inf."""
        known = [self.known(q, ids_MQ[:, q]) for q in range(len(self.out) - 1)]
        h_MQE = self.run(torch.stack([self.first(features_ME), *known], dim=1), features_ME, slice(None), Causal())
        return stacked([full(out(h)) for out, h in zip(self.out, h_MQE.unbind(1))])

    def walk(self, features_ME: Tensor, choose: Callable[[int, Tensor], Tensor]) -> None:
        """Entry after entry, with a cache: ``choose(q, logits)`` says the ids (M,) of codebook q from its logits (M, V_q)."""
        x, cache = self.first(features_ME), self.net.cache(len(features_ME), len(self.out), features_ME)
        for q, out in enumerate(self.out):
            ids_M = choose(q, full(out(self.run(x[:, None], features_ME, slice(q, q + 1), Everything(), cache)[:, 0])))
            if q + 1 < len(self.out):
                x = self.known(q, ids_M)


def stacked(logits: Sequence[Tensor]) -> Tensor:
    """Logits (…, V_q) of the codebooks as (…, Q, V); ids that a smaller codebook lacks have -inf."""
    most = max(part.shape[-1] for part in logits)
    return torch.stack([F.pad(part, (0, most - part.shape[-1]), value=-torch.inf) for part in logits], dim=-2)

"""BERT's head for masked tokens: a transform, a norm, and the table of the embeddings with a bias.

Shapes: B rows, N predicted positions, D width, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.feeds.embedding import table_of
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.categorical import Categorical, full, single
from tokenloom.models.parts.heads.hidden import Hidden


class MaskedLM(Categorical):
    """Logits ``E norm(gelu(W h + b)) + c`` of the embedding table E (arXiv:1810.04805, as MaskGIT has it)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.masked_lm", label="masked language model"):
        """``smoothing`` of the training labels; ``spare`` rows of the official bias belong to no code and are read by nothing."""

        smoothing: float = 0.1
        spare: int = 0
        eps: float = 1e-12

        def __post_init__(self) -> None:
            if not 0 <= self.smoothing < 1:
                raise ConfigError(f"head.smoothing={self.smoothing}: must be in [0, 1)")

    def __init__(self, config: Config, layout: TokenLayout, width: int, feed: Feed) -> None:
        Head.__init__(self)
        self.codes, self.smoothing = single(layout), config.smoothing
        # In a list, so that the table stays a parameter of the feed alone.
        self._table = [cast(nn.Embedding, table_of(feed, self.codes).books[0])]
        self.transform, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=config.eps)
        nn.init.trunc_normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)
        self.bias = nn.Parameter(torch.zeros(self.codes + config.spare))

    def logits(self, h_BND: Tensor) -> Tensor:
        h = self.norm(F.gelu(self.transform(h_BND)))
        return full(F.linear(h, self._table[0].weight[: self.codes], self.bias[: self.codes]))

    def guided(self, hidden: Hidden) -> Tensor:
        """Guidance of logits: they are not affine in the hidden states."""
        return hidden.guided(self.logits)

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """Nats of targets (B, N); in training those of smoothed labels (arXiv:1512.00567, section 7)."""
        if not self.training:
            return super().loss(h_BND, target, draws)
        logits = self.logits(h_BND)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=self.smoothing).view(target.shape)

"""The innermost level: the channels of a pixel one after another, each among 256 values.

Shapes: M pixels, C channels, D width of the condition, E of the level, V = 256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.visibility import Causal

LEVELS = 256

#: Values (M,) of one channel from logits (M, V); the channel's number comes first.
Choose = Callable[[int, Tensor], Tensor]


class PixelLevel(nn.Module):
    """A causal transformer over ``[condition, first channel, second, …]``; logits are products with the channel's embeddings."""

    def __init__(self, net: Transformer.Config, width: int, channels: int) -> None:
        super().__init__()
        self.condition = nn.Linear(width, net.width)
        self.codes = nn.ModuleList([nn.Embedding(LEVELS, net.width) for _ in range(channels)])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(LEVELS)) for _ in range(channels)])
        self.norm = nn.LayerNorm(net.width, eps=1e-6)
        self.net = cast(Transformer, net.build(TokenLayout(grids=((1, channels + 1),), vocabulary=LEVELS, axis="sequence")))
        for codes in self.codes:
            nn.init.normal_(cast(nn.Embedding, codes).weight, std=0.02)

    def logits(self, value_MC: Tensor, cond_MD: Tensor) -> Tensor:
        """(M, n, V) logits of the channels up to the one after the ``value_MC`` (M, n - 1 or C) that are known."""
        count = min(value_MC.shape[1] + 1, len(self.codes))
        known = [codes(value) for codes, value in zip(self.codes, value_MC[:, : count - 1].unbind(1))]
        # Upstream's sequence ends with the last channel, which nothing is predicted from.
        x = self.norm(torch.stack([self.condition(cond_MD), *known], dim=1))
        h = self.net.norm.last(self.net.stack(x, torch.full((1, count), -1, device=x.device), Causal(), x), x)
        tables = [cast(nn.Embedding, codes).weight for codes in self.codes]
        return torch.stack([F.linear(h[:, i], tables[i], self.bias[i]) for i in range(count)], dim=1)

    def nll(self, value_MC: Tensor, cond_MD: Tensor) -> Tensor:
        """(M, C) nats of each channel given those before it."""
        logits = self.logits(value_MC, cond_MD)
        return F.cross_entropy(logits.flatten(0, 1), value_MC.flatten(), reduction="none").view(value_MC.shape)

    def sample(self, cond: Tensor, null: Tensor | None, choose: Callable[[int, Tensor, Tensor | None], Tensor]) -> Tensor:
        """(M, C) values, channel after channel; ``choose(channel, logits, null_logits)`` says those of a channel."""
        value = torch.zeros((len(cond), 0), dtype=torch.int64, device=cond.device)
        for channel in range(len(self.codes)):
            both = cond if null is None else torch.cat([cond, null])
            logits = self.logits(value if null is None else value.repeat(2, 1), both)[:, -1]
            drawn = choose(channel, logits[: len(cond)], None if null is None else logits[len(cond) :])
            value = torch.cat([value, drawn[:, None]], dim=1)
        return value

"""The factorised head: the sub-tokens of a position one after another.

Shapes: B rows, N positions, D width, Q codebooks (sub-tokens), V vocabulary of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.feeds.base import Feed, TokenTable
from models.parts.heads.base import Drawn, Head
from models.parts.heads.categorical import full, guide, pick
from models.parts.nets.transformer import Transformer
from models.protocols import LayoutError, TokenLayout
from models.sampling.sampler import Moment, Sampler


class Factorised(Head):
    """A small causal transformer over ``[hidden state, first sub-token, …]`` (Open-MAGVIT2, arXiv:2409.04410).

    Sub-tokens are embedded as the feed embeds them; the hidden state stands nowhere, the sub-tokens in a row after it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config):
        """``net`` is the small transformer, of the width of the big one."""

        net: Transformer.Config

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Factorised:
            if not layout.discrete or layout.codebooks < 2 or self.net.width != width:
                raise LayoutError(f"a factorised head needs several codebooks, not {layout.codebooks}, and the net's width {width}")
            return Factorised(self, layout, feed)

    def __init__(self, config: Config, layout: TokenLayout, feed: Feed) -> None:
        super().__init__()
        self.net = config.net.build(TokenLayout(grids=((1, layout.codebooks),), vocabulary=layout.vocabulary))
        self.out = nn.ModuleList([nn.Linear(config.net.width, layout.vocabulary, bias=False) for _ in range(layout.codebooks)])
        for linear in self.out:
            nn.init.zeros_(cast(nn.Linear, linear).weight)
        # In a list, so that the tables stay parameters of the feed alone.
        self._table = [cast(TokenTable, feed.table)]
        self.register_buffer("place", torch.arange(layout.codebooks)[None] - 1, persistent=False)

    place: Tensor

    def _embed(self, book: int, ids: Tensor) -> Tensor:
        return self._table[0].books[book](ids)

    def logits(self, h_BND: Tensor, target_BNQ: Tensor) -> Tensor:
        """(B, N, Q, V) logits of each sub-token given the true ones before it."""
        h_MD, target_MQ = h_BND.flatten(0, 1), target_BNQ.flatten(0, 1)
        known = [self._embed(q, target_MQ[:, q]) for q in range(len(self.out) - 1)]
        steer = h_MD[:, None]
        x_MQD = self.net.norm.last(self.net.stack(torch.stack([h_MD, *known], 1), self.place, "causal", steer), steer)
        logits = torch.stack([out(x) for out, x in zip(self.out, x_MQD.unbind(1))], dim=1)
        return full(logits).unflatten(0, h_BND.shape[:2])

    def nll(self, h_BND: Tensor, target: Tensor) -> Tensor:
        """The sum over sub-tokens, (B, N)."""
        logits = self.logits(h_BND, target)
        return F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape).sum(-1)

    def draw(
        self,
        h_BND: Tensor,
        null_BND: Tensor | None,
        sampler: Sampler,
        moment: Moment,
        generator: torch.Generator,
        forced: Tensor | None = None,
    ) -> Drawn:
        """Sub-token after sub-token, each under guidance."""
        both = h_BND if null_BND is None else torch.cat([h_BND, null_BND])
        rows, (_, count, _), weight = len(h_BND), h_BND.shape, sampler.guidance.on(moment)
        steer = both.flatten(0, 1)[:, None]
        x, cache = steer, self.net.cache(len(both) * count, len(self.out), both)
        ids, found = [], []
        for q, out in enumerate(self.out):
            h = self.net.norm.last(self.net.stack(x, self.place[:, q : q + 1], None, steer, cache), steer)
            part = full(out(h[:, 0])).view(len(both), count, -1)
            logits = guide(part[:rows], None if null_BND is None else part[rows:], weight)
            drawn = pick(logits, sampler, moment, generator) if forced is None else forced[..., q]
            ids.append(drawn)
            found.append(logits)
            x = self._embed(q, drawn.repeat(len(both) // rows, 1).flatten())[:, None]
        data, logits = torch.stack(ids, -1), torch.stack(found, -2)
        return Drawn(data, logits, logits.gather(-1, data.unsqueeze(-1)).squeeze(-1).sum(-1))

"""The channel-wise head: the channels of a token one after another, by a small modulated transformer.

Shapes: B rows, N positions, M = B N, D width of the net, E of the head, n channels at once, Q channels (codebooks), V levels of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.categorical import pick
from tokenloom.models.parts.heads.chained import Chained
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.visibility import Visibility
from tokenloom.models.sampling.sampler import Moment, Sampler


class Channelwise(Chained):
    """TokenBridge's head (arXiv:2503.16430): ``[features, channel 1, …]`` with adaptive norms modulated by features and step.

    Guidance is of the features, before the head.  ``order`` lists the channels as they are predicted (empty: as they are).
    """

    likelihood = "exact"

    order: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.channelwise", label="channel by channel"):
        """``net`` is the small transformer; ``eps`` of the norm after it."""

        net: Transformer.Config
        order: tuple[int, ...] = ()
        eps: float = 1e-6

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Channelwise:
            if not layout.discrete or layout.codebooks < 2 or (self.order and sorted(self.order) != list(range(layout.codebooks))):
                raise LayoutError(
                    f"this head needs several codebooks, and head.order={list(self.order)} to list each of {layout.codebooks}"
                )
            return Channelwise(self, layout, width)

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        books, inner, codes = layout.codebooks, config.net.width, layout.vocabulary
        self.features = nn.Linear(width, inner)
        self.net = cast(Transformer, config.net.build(TokenLayout(grids=((1, books),), vocabulary=codes)))
        self.norm = nn.LayerNorm(inner, eps=config.eps)
        self.table = nn.ModuleList([nn.Embedding(codes, inner) for _ in range(books - 1)])
        self.position = nn.Parameter(torch.empty(1, books, inner))
        self.position_step = nn.Parameter(torch.empty(1, books, inner))
        self.out = nn.ModuleList([nn.Linear(inner, codes) for _ in range(books)])
        for weight in (self.position, self.position_step):
            nn.init.normal_(weight, std=0.02)
        self.register_buffer("order", torch.tensor(config.order or tuple(range(books))), persistent=False)
        self.register_buffer("place", torch.arange(books)[None], persistent=False)

    def known(self, book: int, ids_M: Tensor) -> Tensor:
        """(M, E)."""
        return cast(nn.Embedding, self.table[book])(ids_M)

    def run(
        self, x_MnE: Tensor, features_ME: Tensor, books: slice, visibility: Visibility, cache: list[LayerCache] | None = None
    ) -> Tensor:
        """Hidden states (M, n, E), modulated by features and step."""
        modulation = features_ME[:, None] + self.position_step[:, books]
        x = self.net.stack(x_MnE + self.position[:, books], self.place[:, books], visibility, modulation, cache)
        return self.net.norm.last(self.norm(x), modulation)

    def logits(self, h_BND: Tensor, target_BNQ: Tensor) -> Tensor:
        """(B, N, Q, V) logits of each channel, in the order of prediction, given the true ones before it."""
        target_MQ = target_BNQ.flatten(0, 1)[:, self.order]
        return self.taught(self.features(h_BND.flatten(0, 1)), target_MQ).unflatten(0, h_BND.shape[:2])

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """The sum over channels, (B, N)."""
        logits, ids = self.logits(h_BND, target), target[..., self.order]
        return F.cross_entropy(logits.flatten(0, 2), ids.flatten(), reduction="none").view(ids.shape).sum(-1)

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        """Channel after channel from guided features; there are no guided logits, which would be mixed after the head."""
        h_BND = hidden.guided()
        ids: list[Tensor] = []

        def choose(q: int, logits_MV: Tensor) -> Tensor:
            if forced is None:
                logits = logits_MV.unflatten(0, h_BND.shape[:2])
                ids.append(pick(logits, sampler, moment, draws, f"head.{q}").flatten())
            else:
                ids.append(forced[..., self.order[q]].flatten())
            return ids[-1]

        self.walk(self.features(h_BND.flatten(0, 1)), choose)
        drawn = torch.stack(ids, dim=-1)
        data = torch.empty_like(drawn)
        data[:, self.order] = drawn
        return Drawn(data.unflatten(0, h_BND.shape[:2]))

"""The channel-wise head: the channels of a token one after another, by a small steered transformer.

Shapes: B rows, N positions, M = B N, D width of the net, E of the head, Q channels (codebooks), V levels of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.feeds.base import Feed
from models.parts.heads.base import Drawn, Head
from models.parts.heads.categorical import full, pick
from models.parts.nets.transformer import Transformer
from models.protocols import LayoutError, TokenLayout
from models.sampling.sampler import Moment, Sampler


class Channelwise(Head):
    """TokenBridge's head (arXiv:2503.16430): ``[features, channel 1, …]`` with adaptive norms steered by features and step.

    Guidance is of the features, before the head.  ``order`` lists the channels as they are predicted (empty: as they are).
    """

    order: Tensor
    place: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config):
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
        self.net = config.net.build(TokenLayout(grids=((1, books),), vocabulary=codes))
        self.norm = nn.LayerNorm(inner, eps=config.eps)
        self.table = nn.ModuleList([nn.Embedding(codes, inner) for _ in range(books - 1)])
        self.position = nn.Parameter(torch.empty(1, books, inner))
        self.position_step = nn.Parameter(torch.empty(1, books, inner))
        self.out = nn.ModuleList([nn.Linear(inner, codes) for _ in range(books)])
        for weight in (self.position, self.position_step):
            nn.init.normal_(weight, std=0.02)
        self.register_buffer("order", torch.tensor(config.order or tuple(range(books))), persistent=False)
        self.register_buffer("place", torch.arange(books)[None], persistent=False)

    def first(self, features_ME: Tensor) -> Tensor:
        """The first input of the sequence."""
        return features_ME

    def logits(self, h_BND: Tensor, target_BNQ: Tensor) -> Tensor:
        """(B, N, Q, V) logits of each channel, in the order of prediction, given the true ones before it."""
        target_MQ = target_BNQ.flatten(0, 1)[:, self.order]
        feature_ME = self.features(h_BND.flatten(0, 1))
        known = [cast(nn.Embedding, table)(target_MQ[:, q]) for q, table in enumerate(self.table)]
        x_MQE = self._run(torch.stack([self.first(feature_ME), *known], dim=1), feature_ME)
        return full(torch.stack([out(x) for out, x in zip(self.out, x_MQE.unbind(1))], dim=1)).unflatten(0, h_BND.shape[:2])

    def _run(self, x_MQE: Tensor, feature_ME: Tensor) -> Tensor:
        count = x_MQE.shape[1]
        steer = feature_ME[:, None] + self.position_step[:, :count]
        x = self.net.stack(x_MQE + self.position[:, :count], self.place[:, :count], "causal", steer)
        return self.net.norm.last(self.norm(x), steer)

    def nll(self, h_BND: Tensor, target: Tensor) -> Tensor:
        """The sum over channels, (B, N)."""
        logits, ids = self.logits(h_BND, target), target[..., self.order]
        return F.cross_entropy(logits.flatten(0, 2), ids.flatten(), reduction="none").view(ids.shape).sum(-1)

    def draw(
        self,
        h_BND: Tensor,
        null_BND: Tensor | None,
        sampler: Sampler,
        moment: Moment,
        generator: torch.Generator,
        forced: Tensor | None = None,
    ) -> Drawn:
        """Channel after channel from guided features; there are no guided logits, which would be mixed after the head."""
        weight = sampler.guidance.on(moment)
        h = h_BND if null_BND is None else (1 + weight) * h_BND - weight * null_BND
        feature_ME = self.features(h.flatten(0, 1))
        x, ids, found = self.first(feature_ME)[:, None], [], []
        for q, out in enumerate(self.out):
            logits = full(out(self._run(x, feature_ME)[:, -1]))
            found.append(logits)
            ids.append(pick(logits, sampler, moment, generator) if forced is None else forced[..., self.order[q]].flatten())
            if q < len(self.table):
                x = torch.cat([x, cast(nn.Embedding, self.table[q])(ids[-1])[:, None]], dim=1)
        drawn, logits = torch.stack(ids, dim=-1), torch.stack(found, dim=-2)
        data = torch.empty_like(drawn)
        data[:, self.order] = drawn
        chosen = logits.gather(-1, drawn.unsqueeze(-1)).squeeze(-1).sum(-1)
        return Drawn(data.unflatten(0, h_BND.shape[:2]), None, chosen.unflatten(0, h_BND.shape[:2]))

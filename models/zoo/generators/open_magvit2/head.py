"""The factorised head: the sub-tokens of a position one after another.

Shapes: B rows, N positions, M = B N, D width, Q codebooks (sub-tokens), V vocabulary of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import OWN_VOCABULARIES, Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.feeds.embedding import table_of
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.categorical import pick
from tokenloom.models.parts.heads.chained import Chained, stacked
from tokenloom.models.parts.heads.hidden import Hidden, guide
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.head_sampler import HeadSampler
from tokenloom.models.sampling.sampler import Moment, Sampler


@dataclass(frozen=True, kw_only=True)
class SubTokens(HeadSampler, tag="head_sampler.sub_tokens"):
    """Settings of the factorised head: shares of the sampler's guidance weight and of its temperature, one for each sub-token
    (empty: all of it)."""

    guidance: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()


class Factorised(Chained):
    """A small causal transformer over ``[hidden state, first sub-token, …]`` (Open-MAGVIT2, arXiv:2409.04410).

    Sub-tokens are embedded as the feed embeds them; the hidden state stands nowhere, the sub-tokens in a row after it.
    """

    likelihood = "exact"

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.factorised"):
        """``net`` is the small transformer, of the width of the big one."""

        net: Transformer.Config

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Factorised:
            if not layout.discrete or layout.codebooks < 2 or self.net.width != width:
                raise LayoutError(f"a factorised head needs several codebooks, not {layout.codebooks}, and the net's width {width}")
            return Factorised(self, layout, feed)

    def __init__(self, config: Config, layout: TokenLayout, feed: Feed) -> None:
        super().__init__()
        self.net = cast(Transformer, config.net.build(TokenLayout(grids=((1, layout.codebooks),), vocabulary=layout.vocabulary)))
        self.out = nn.ModuleList([nn.Linear(config.net.width, codes, bias=False) for codes in layout.codebook_sizes])
        for linear in self.out:
            nn.init.zeros_(cast(nn.Linear, linear).weight)
        # In a list, so that the tables stay parameters of the feed alone.
        self._table = [table_of(feed, layout.codebook_sizes[0])]
        self.register_buffer("place", torch.arange(layout.codebooks)[None] - 1, persistent=False)

    def traits(self, plan: Plan) -> Traits:
        return {"logits": Trait("yes", "head"), OWN_VOCABULARIES: Trait("yes", "head")}

    def known(self, book: int, ids_M: Tensor) -> Tensor:
        """(M, D)."""
        return self._table[0].books[book](ids_M)

    def logits(self, h_BND: Tensor, target_BNQ: Tensor) -> Tensor:
        """(B, N, Q, V) logits of each sub-token given the true ones before it."""
        return self.taught(h_BND.flatten(0, 1), target_BNQ.flatten(0, 1)).unflatten(0, h_BND.shape[:2])

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """The sum over sub-tokens, (B, N)."""
        logits = self.logits(h_BND, target)
        return F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape).sum(-1)

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse settings of another head, or of another number of sub-tokens."""
        if sampler.head is None:
            return
        if not isinstance(sampler.head, SubTokens):
            raise ConfigError(f"sample.head={sampler.head!r}: this head is set by sub_tokens")
        for name in ("guidance", "temperature"):
            given: tuple[float, ...] = getattr(sampler.head, name)
            if given and (len(given) != len(self.out) or min(given) < 0):
                raise ConfigError(f"sample.head.{name}={list(given)}: must be one for each of {len(self.out)} sub-tokens, none negative")

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        """Sub-token after sub-token, each under guidance."""
        h_BND, null_BND = hidden.cond_BND, hidden.null_BND
        both = h_BND if null_BND is None else torch.cat([h_BND, null_BND])
        rows, count = h_BND.shape[:2]
        own = sampler.head if isinstance(sampler.head, SubTokens) else SubTokens()
        every = (1.0,) * len(self.out)
        shares, warmth = own.guidance or every, own.temperature or every
        ids: list[Tensor] = []
        found: list[Tensor] = []

        def choose(q: int, logits_MV: Tensor) -> Tensor:
            part = logits_MV.view(len(both), count, -1)
            found.append(guide(part[:rows], None if null_BND is None else part[rows:], hidden.weight * shares[q]))
            ids.append(pick(found[-1] / warmth[q], sampler, moment, draws, f"head.{q}") if forced is None else forced[..., q])
            return ids[-1].repeat(len(both) // rows, 1).flatten()

        self.walk(both.flatten(0, 1), choose)
        return Drawn(torch.stack(ids, -1), stacked(found))

"""The generator that most methods are: one loop over groups, whatever the order, feed, net and head.

Shapes: B rows, L positions, S slots, T slots so far, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from models import config, protocols
from models.draws import Draws
from models.parts.conditions import ClassCondition, Conditioned, TextCondition
from models.parts.feeds import NextScale, Shifted, Slots
from models.parts.heads.categorical import Categorical
from models.parts.nets.transformer import Transformer
from models.parts.orders import Diagonals, Plan, Random, Raster, Scales
from models.protocols import Batch, Condition, Tokenizer, TokenLayout, Tokens
from models.sampling.sampler import Sampler


@dataclass(frozen=True)
class Decoded:
    """One decoding step: the group, its layout positions (B or 1, n), guided logits (B, n, V), drawn ids (B, n), the feed's state."""

    group: int
    place_Bn: Tensor
    logits_BnV: Tensor
    ids_Bn: Tensor
    state: Any


class GroupGenerator(protocols.Generator):
    """Predicts the positions group by group: ``p(x) = prod_g prod_{i in g} p(x_i | earlier groups, condition)``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """One value for each axis of a method."""

        order: Raster | Scales | Diagonals | Random
        feed: Shifted.Config | NextScale.Config
        net: Transformer.Config
        head: Categorical.Config
        condition: ClassCondition.Config | TextCondition.Config = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> GroupGenerator:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: a part that does not fit the tokens or the classes.
            """
            return GroupGenerator(self, layout, classes, tokenizer)

    def __init__(self, config: Config, layout: TokenLayout, classes: int, tokenizer: Any) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        self.order, self.sampler = config.order, config.sampler
        self.condition = config.condition.build(classes, config.net.width)
        self.feed = config.feed.build(layout, config.net.width, tokenizer)
        self.net = config.net.build(layout)
        self.head = config.head.build(layout, config.net.width)

    def adopt(self, *, tokenizer: Tokenizer | None = None, features: nn.Module | None = None) -> None:
        """Copy, frozen, what the feed needs of the tokenizer."""
        if isinstance(self.feed, NextScale) and tokenizer is not None:
            self.feed.adopt(tokenizer)

    def forward(self, ids_BL: Tensor, condition: Condition, plan: Plan, draws: Draws | None = None) -> Tensor:
        """Teacher forcing: hidden states (B, L, D) in the order of the plan's sequence."""
        cond = self.condition(self.condition.drop(condition, draws))
        slots = self.feed.parallel(ids_BL, plan, cond, draws)
        mask = _mask(plan, slots.group_BS, slots.group_BS, _keys(cond, slots.group_BS.shape[1]))
        h = self.net(slots.x_BSD, slots.place_BS, mask, cond.vector_BD, draws=draws)
        return h[:, -slots.predicting :]

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats; by scale where there are several."""
        assert batch.tokens is not None
        assert batch.condition is not None
        self.layout.check(batch.tokens.layout)
        ids = batch.tokens.ids
        plan = self.order.plan(self.layout, draws)
        nll = self._nll(ids, batch.condition, plan, draws if self.training else None)
        parts = {"loss": nll.mean()}
        sizes = self.layout.scale_sizes
        if len(sizes) > 1 and plan.sizes == sizes:
            parts |= {f"loss_scale_{k}": part.detach().mean() for k, part in enumerate(nll.split(list(sizes), dim=1))}
        return parts

    def _nll(self, ids_BL: Tensor, condition: Condition, plan: Plan, draws: Draws | None) -> Tensor:
        h = self(ids_BL, condition, plan, draws)
        target = ids_BL.gather(1, plan.sequence_BL.to(ids_BL.device).expand_as(ids_BL))
        return self.head.nll(h, target)

    def log_prob(self, batch: Batch) -> Tensor:
        """Log-likelihood of the tokens in nats (B,), under the order's decoding plan."""
        assert batch.tokens is not None
        assert batch.condition is not None
        plan = self.order.decode(self.layout, batch.rows, torch.Generator().manual_seed(0))
        return -self._nll(batch.tokens.ids, batch.condition, plan, None).sum(1)

    @torch.no_grad()
    def decode_steps(
        self, condition: Condition, sampler: Sampler, generator: torch.Generator, forced: Tensor | None = None
    ) -> Iterator[Decoded]:
        """Decode group after group with caches, yielding each step.

        With guidance, conditional and null rows go through the net as one batch.  ``forced`` (B, L) ids are
        taken instead of drawn ones (for tests, in-painting of a prefix and scoring).
        """
        rows = _rows(condition)
        plan = self.order.decode(self.layout, rows, generator)
        guided = any(sampler.guidance.at(_progress(g, plan)) != 0 for g in range(plan.groups))
        cond = self.condition(condition)
        if guided:
            cond = _stack(cond, self.condition(self.condition.null(condition)))
        cache = self.net.cache(len(cond.vector_BD), self.feed.slots(self.layout, self.condition.prefix), cond.vector_BD)
        twice = 2 if guided and len(plan.sequence_BL) > 1 else 1
        both = Plan(plan.sequence_BL.repeat(twice, 1), plan.sizes, plan.window)
        state = self.feed.start(both, cond)
        seen: Tensor | None = None
        for group in range(plan.groups):
            slots: Slots = self.feed.step(state, both, cond, group)
            seen = slots.group_BS if seen is None else torch.cat([seen, slots.group_BS], dim=1)
            mask = _mask(plan, slots.group_BS, seen, _keys(cond, seen.shape[1]))
            h = self.net(slots.x_BSD, slots.place_BS, mask, cond.vector_BD, cache)[:, -slots.predicting :]
            progress = _progress(group, plan)
            logits = self.head.guided(h[:rows], h[rows:] if guided else None, sampler.guidance.at(progress))
            place = plan.members(group).to(logits.device)
            ids = self.head.sample(logits, sampler, progress, generator)
            if forced is not None:
                ids = forced.gather(1, place.expand(rows, -1))
            state = self.feed.push(state, both, group, ids.repeat(2, 1) if guided else ids)
            yield Decoded(group, place, logits, ids, state)

    @torch.no_grad()
    def generate(self, condition: Condition, sampler: Sampler, generator: torch.Generator) -> Tokens:
        """One sample per row of the condition."""
        ids = torch.empty((_rows(condition), self.layout.length), dtype=torch.long, device=next(self.parameters()).device)
        for step in self.decode_steps(condition, sampler, generator):
            ids.scatter_(1, step.place_Bn.expand(len(ids), -1), step.ids_Bn)
        return Tokens(ids, self.layout)


def _progress(group: int, plan: Plan) -> float:
    return group / max(1, plan.groups - 1)


def _rows(condition: Condition) -> int:
    return len(condition.label_B if isinstance(condition, protocols.Labels) else condition.feature_BTD)


def _stack(cond: Conditioned, null: Conditioned) -> Conditioned:
    seen = None if cond.seen_BP is None else torch.cat([cond.seen_BP, cast(Tensor, null.seen_BP)])
    return Conditioned(torch.cat([cond.prefix_BPD, null.prefix_BPD]), torch.cat([cond.vector_BD, null.vector_BD]), seen)


def _keys(cond: Conditioned, slots: int) -> Tensor | None:
    """(B, T) true where a slot may be seen: hidden are only padded prefix slots."""
    if cond.seen_BP is None:
        return None
    rest = cond.seen_BP.new_ones((len(cond.seen_BP), slots - cond.seen_BP.shape[1]))
    return torch.cat([cond.seen_BP, rest], dim=1)


def _mask(plan: Plan, query_BS: Tensor, key_BT: Tensor, seen_BT: Tensor | None) -> Tensor | None:
    """(B or 1, 1, S, T) attention mask, None where everything is seen; a slot always sees itself."""
    mask = plan.visible(query_BS, key_BT)
    if seen_BT is not None:
        itself = torch.arange(key_BT.shape[1] - query_BS.shape[1], key_BT.shape[1], device=mask.device)
        own = itself[:, None] == torch.arange(key_BT.shape[1], device=mask.device)
        mask = mask & (seen_BT[:, None] | own)
    return None if bool(mask.all()) else mask.unsqueeze(1)

"""The generator that most methods are: one loop over groups, whatever the order, feed, net and head.

Shapes: B rows, L positions, N predicted positions, S slots, T keys, K hidden states of a slot, D width, Q codebooks,
C channels.  Tokens are ids (B, L) or (B, L, Q), or latents (B, L, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Condition, Tokenizer, TokenLayout, Tokens
from tokenloom.models.parts.conditions import ClassCondition, Conditioned, Conditioner, stack
from tokenloom.models.parts.feeds.base import Feed, take
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots, visibility_of
from tokenloom.models.sampling.sampler import Moment, Sampler


@dataclass(frozen=True)
class Decoded:
    """One decoding step: the group, its layout positions (B or 1, n) and drawn tokens (B, n, …), and what they were drawn from.

    Hidden states of the conditional rows (B, n, D), guided logits (B, n, …) where the head has them, the slots fed, and the feed's
    state afterwards.  Where the order chooses by confidence, logits and ``drawn`` are those of all positions.
    """

    group: int
    place_Bn: Tensor
    data: Tensor
    h_BnD: Tensor
    logits: Tensor | None
    drawn: Tensor
    slots: Slots
    state: Any


class GroupGenerator(protocols.Generator):
    """Predicts the positions group by group: ``p(x) = prod_g prod_{i in g} p(x_i | earlier groups, condition)``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config, tag="model.groups"):
        """One value for each axis of a method."""

        order: Order
        feed: Feed.Config
        net: SlotNet.Config
        head: Head.Config
        condition: Conditioner.Config = ClassCondition.Config()
        sampler: Sampler = Sampler()

        def build(self, layout: TokenLayout, classes: int, tokenizer: Any = None, **given: Any) -> GroupGenerator:
            """The generator for these tokens.

            Raises:
                ConfigError, LayoutError: a part that does not fit the tokens or the classes.
            """
            return GroupGenerator(self, layout, classes, tokenizer)

    def __init__(self, config: Config, layout: TokenLayout, classes: int, tokenizer: Any) -> None:
        super().__init__()
        self.config, self.layout, self.given = config, layout, (classes, tokenizer)
        self.order, self.sampler = config.order, config.sampler
        self.condition = config.condition.build(classes, config.net.width)
        self.feed = config.feed.build(layout, config.net.width, tokenizer)
        self.net = config.net.build(layout)
        self.head = config.head.build(layout, config.net.width, self.feed)

    def adopt(self, *, tokenizer: Tokenizer | None = None, features: nn.Module | None = None) -> None:
        """Copy, frozen, what the feed needs of the tokenizer."""
        if tokenizer is not None:
            self.feed.adopt(tokenizer)

    def on(self, grids: tuple[tuple[int, int], ...]) -> GroupGenerator:
        """The same weights for tokens of other grids, where no weight belongs to a grid.

        Raises:
            LayoutError: weights of this generator belong to its grids.
        """
        try:
            other = GroupGenerator(self.config, replace(self.layout, grids=grids), *self.given).to(next(self.parameters()).device)
            other.load_state_dict(self.state_dict())
        except (RuntimeError, ValueError) as error:
            raise protocols.LayoutError(f"this generator is bound to its grids {self.layout.grids}: {error}") from error
        return other.train(self.training)

    def forward(self, data: Tensor, condition: Condition, plan: Plan, draws: Draws | None = None) -> Tensor:
        """Teacher forcing: hidden states (B, N, D) or (B, N, K, D) in the order of the plan's sequence, N being L over the feed's share."""
        plan, cond = plan.to(data.device), self.condition(self.condition.drop(condition, draws))
        if self.feed.passes == "whole" and plan.groups > 1:
            # Without causal masks each group needs a pass of its own, in which all earlier ones are known.
            return torch.cat([self._parallel(data, part, cond, draws) for part in plan.one_by_one()], dim=1)
        return self._parallel(data, plan, cond, draws)

    def _parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Tensor:
        slots = self.feed.parallel(data, plan, cond, draws)
        visibility = visibility_of(slots, plan.window, cond.seen_BP)
        return read(self.net(slots, visibility, cond, draws=draws), slots.output_index)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: mean negative log-likelihood a token in nats, weighted as the plan says; by scale where there are several."""
        assert batch.tokens is not None
        assert batch.condition is not None
        self.layout.check(batch.tokens.layout)
        plan = self.order.plan(self.layout, draws)
        given = target = tokens_of(batch.tokens)
        if self.training:
            given, target = self.feed.told(target, draws)
        nll = self._nll(given, batch.condition, plan, draws if self.training else None, target)
        if plan.weight_BL is None:
            parts = {"loss": nll.mean()}
        else:
            weight = plan.weight_BL.to(nll.device).gather(1, plan.sequence_BL.to(nll.device).expand(len(plan.weight_BL), -1))
            parts = {"loss": (nll * weight).sum(1).mean()}
        sizes = self.layout.scale_sizes
        if len(sizes) > 1 and plan.sizes == sizes:
            parts |= {f"loss_scale_{k}": part.detach().mean() for k, part in enumerate(nll.split(list(sizes), dim=1))}
        return parts

    def _nll(self, data: Tensor, condition: Condition, plan: Plan, draws: Draws | None, said: Tensor | None = None) -> Tensor:
        """(B, L) in the order of the plan's sequence; ``said`` are the targets where they are not the tokens given."""
        h = self(data, condition, plan, draws)
        target = take(data if said is None else said, plan.sequence_BL.to(data.device))
        if h.shape[1] == target.shape[1]:
            return self.head.nll(h, target)
        return self.head.nll(h, target.unflatten(1, (h.shape[1], -1))).flatten(1)

    @property
    def has_log_prob(self) -> bool:
        """Not where the order chooses the members of a group by confidence."""
        return self.order.decode(self.layout, 1, torch.Generator().manual_seed(0)).choice is None

    def log_prob(self, batch: Batch) -> Tensor:
        """Log-likelihood of the tokens in nats (B,), under the order's decoding plan."""
        assert batch.tokens is not None
        assert batch.condition is not None
        plan = self.order.decode(self.layout, batch.rows, torch.Generator().manual_seed(0))
        return -self._nll(tokens_of(batch.tokens), batch.condition, plan, None).sum(1)

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse steps that the order does not leave open, and tokens that it cannot order."""
        # A fresh layout: one that was built with the model on the meta device has positions without values.
        self.order.decode(replace(self.layout), 1, torch.Generator(), sampler.sizes)

    @torch.no_grad()
    def decode_steps(
        self,
        condition: Condition,
        sampler: Sampler,
        generator: torch.Generator,
        forced: Tensor | None = None,
        keep_L: Tensor | None = None,
        plan: Plan | None = None,
    ) -> Iterator[Decoded]:
        """Decode group after group, with caches where the feed is causal, yielding each step.

        With guidance, conditional and null rows go through the net as one batch.  ``forced`` (B, L, …) tokens are taken instead
        of drawn ones, at all positions or at those in ``keep_L`` (L,): for tests, scoring and in-painting.  ``plan`` replaces the order's.
        """
        rows, device = rows_of(condition), next(self.parameters()).device
        if plan is None:
            plan = self.order.decode(self.layout, rows, generator, sampler.sizes)
            plan = plan if keep_L is None else self.order.around(plan, keep_L)
        plan = plan.to(device)
        moments = [Moment(g, plan.groups, plan.start(g), plan.start(g + 1), self.layout.length) for g in range(plan.groups)]
        guided = any(sampler.guidance.on(moment) != 0 for moment in moments)
        cond = self.condition(condition)
        if guided:
            cond = stack(cond, self.condition(self.condition.null(condition)))
        both = plan.repeat(2) if guided else plan
        whole = self.feed.passes == "whole"
        cache = None if whole else self.net.cache(len(cond.vector_BD), self.feed.slots(plan, self.condition.prefix), cond.vector_BD)
        state = self.feed.start(both, cond)
        seen: Tensor | None = None
        known_BL = torch.zeros((rows, self.layout.length), dtype=torch.bool, device=device)
        for group, moment in enumerate(moments):
            slots = self.feed.step(state, both, cond, group)
            ranks = slots.group_BS if seen is None else _beside(seen, slots.group_BS)
            private = slots.segment_BS
            if private is not None and seen is not None:  # what stays in sight is hidden from none
                private = _beside(torch.full_like(seen, -1), private)
            visibility = visibility_of(slots, plan.window, cond.seen_BP, ranks, private)
            states = self.net(slots, visibility, cond, cache)
            if cache is not None:
                new = slots.x_BSD.shape[1]
                seen = ranks[:, : ranks.shape[1] - new + (new if slots.cached is None else slots.cached)]
                for layer in cache:
                    layer.truncate(seen.shape[1])
            h = read(states, slots.output_index)
            h = h.repeat_interleave(slots.tokens_per_slot, dim=1) if slots.tokens_per_slot > 1 else h
            place = plan.sequence_BL if plan.choice else plan.members(group)
            teacher = None if forced is None or keep_L is not None else take(forced, place)
            drawn = self.head.draw(h[:rows], h[rows:] if guided else None, sampler, moment, generator, teacher)
            data = drawn.data
            if forced is not None and keep_L is not None:
                given = keep_L.to(device)[place].expand(rows, -1)
                data = torch.where(given.view(*given.shape, *[1] * (data.ndim - 2)), take(forced, place), data)
            if plan.choice is not None:
                sure = plan.choice.confidence(drawn, (group + 1) / plan.groups, generator).masked_fill(known_BL, -torch.inf)
                if keep_L is not None:  # what is given is known first
                    sure = sure.masked_fill(keep_L.to(device) & ~known_BL, torch.inf)
                place = sure.topk(plan.sizes[group], dim=1).indices
                data = take(data, place)
                known_BL = known_BL.scatter(1, place, True)
            both_places = place.repeat(2, 1) if guided and len(place) > 1 else place
            state = self.feed.push(state, both, group, data.repeat(2, *[1] * (data.ndim - 1)) if guided else data, both_places)
            yield Decoded(group, place, data, h[:rows], drawn.logits, drawn.data, slots, state)

    @torch.no_grad()
    def generate(self, condition: Condition, sampler: Sampler, generator: torch.Generator) -> Tokens:
        """One sample per row of the condition."""
        return self._collect(rows_of(condition), self.decode_steps(condition, sampler, generator))

    @torch.no_grad()
    def inpaint(self, tokens: Tokens, keep_L: Tensor, condition: Condition, sampler: Sampler, generator: torch.Generator) -> Tokens:
        """Samples that hold the given tokens where ``keep_L`` (L,) is true, without training for it.

        What is kept is seen by all that is drawn where the order may start anywhere, else only by what comes later.
        """
        self.layout.check(tokens.layout)
        steps = self.decode_steps(condition, sampler, generator, tokens_of(tokens), keep_L)
        return self._collect(rows_of(condition), steps)

    def _collect(self, rows: int, steps: Iterator[Decoded]) -> Tokens:
        result: Tensor | None = None
        for step in steps:
            if result is None:
                result = step.data.new_zeros((rows, self.layout.length, *step.data.shape[2:]))
            index = step.place_Bn.expand(rows, -1)
            result.scatter_(1, index.view(*index.shape, *[1] * (result.ndim - 2)).expand(*index.shape, *result.shape[2:]), step.data)
        assert result is not None
        return Tokens(result, self.layout)


def tokens_of(tokens: Tokens) -> Tensor:
    """Ids as int64, or latents."""
    return tokens.ids if tokens.layout.discrete else tokens.data


def rows_of(condition: Condition) -> int:
    """Number of rows of a condition."""
    return condition.rows


def read(h: Tensor, output_index: Tensor) -> Tensor:
    """Hidden states at the slots that predict: (B, S, D) at (B or 1, N) gives (B, N, D).

    With K states a slot, (B, K, S, D) at (B or 1, N, K) gives (B, N, K, D), each divided by the number of states that its
    position has and zero where it has none, so that their sum over K is a mean.
    """
    if output_index.ndim == 2:
        return h.gather(1, output_index.unsqueeze(-1).expand(len(h), -1, h.shape[-1]))
    there = output_index >= 0
    index = output_index.clamp_min(0).transpose(1, 2).unsqueeze(-1).expand(len(h), -1, -1, h.shape[-1])  # (B, K, N, D)
    weight = there / there.sum(-1, keepdim=True)
    return h.gather(2, index).transpose(1, 2) * weight.unsqueeze(-1).to(h.dtype)


def _beside(first_BT: Tensor, second_BS: Tensor) -> Tensor:
    rows = max(len(first_BT), len(second_BS))
    return torch.cat([first_BT.expand(rows, -1), second_BS.expand(rows, -1)], dim=1)

"""The generator that most methods are: one loop over groups, whatever the order, feed, net and head.

Shapes: B rows, L positions, N predicted positions, S slots, T keys, K hidden states of a slot, D width, Q codebooks,
C channels.  Tokens are ids (B, L) or (B, L, Q), or latents (B, L, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config, protocols
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Condition, Conditions, Tokenizer, TokenLayout, Tokens
from tokenloom.models.core.protocols import tokens_of as tokens_of
from tokenloom.models.objectives.base import Objective
from tokenloom.models.objectives.nll import NLL, in_sequence
from tokenloom.models.parts.agreement import agree
from tokenloom.models.parts.conditions import ClassCondition, Conditioned, Conditioner
from tokenloom.models.parts.feeds.base import Feed, take
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.nets.slots import SlotNet
from tokenloom.models.parts.orders import Masked, Random
from tokenloom.models.parts.orders.base import Order
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots, visibility_of
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.groups import GroupWise
from tokenloom.models.sampling.proposal import Decoded as Decoded
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.session import DecodingSession
from tokenloom.models.sampling.trace import Trace


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
        objective: Added[Objective.Config] = NLL.Config()

        @property
        def needs(self) -> tuple[str, ...]:
            return self.objective.needs

    def __init__(self, config: Config, layout: TokenLayout, classes: int, tokenizer: Any = None) -> None:
        super().__init__()
        self.config, self.layout, self.given = config, layout, (classes, tokenizer)
        # In a list, so that its weights are not taken for this model's.
        self._draft: list[GroupGenerator] = []
        self.order, self.sampler = config.order, config.sampler
        self.condition = config.condition.build(classes, config.net.width)
        self.feed = config.feed.build(layout, config.net.width, tokenizer)
        self.net = config.net.build(layout)
        self.head = config.head.build(layout, config.net.output_width, self.feed)
        self.objective = config.objective.build()
        agree(
            layout,
            order=self.order,
            feed=self.feed,
            net=self.net,
            head=self.head,
            condition=self.condition,
            objective=self.objective,
        )

    def adopt(self, **roles: nn.Module) -> None:
        """Copy, frozen, what the feed needs of the tokenizer and the objective of its own roles."""
        if "tokenizer" in roles:
            self.feed.adopt(cast(Tokenizer, roles["tokenizer"]))
        self.objective.adopt(**{role: roles[role] for role in self.config.objective.needs if role in roles})

    def on(self, grids: tuple[tuple[int, int], ...], quantizer: Any = None) -> GroupGenerator:
        """The same weights for tokens of other grids, where no weight belongs to a grid; see ``Generator.on``."""
        classes, tokenizer = self.given
        if quantizer is not None and getattr(tokenizer, "quantizer", None) is not None:
            tokenizer = replace(tokenizer, quantizer=quantizer)
        try:
            other = type(self)(self.config, replace(self.layout, grids=grids), classes, tokenizer)
        except ValueError as error:
            raise protocols.LayoutError(f"this generator is bound to its grids {self.layout.grids}: {error}") from error
        mine, shapes = self.state_dict(), {name: tensor.shape for name, tensor in other.state_dict().items()}
        if bound := sorted({name for name in mine.keys() | shapes.keys() if name not in mine or mine[name].shape != shapes.get(name)}):
            raise protocols.LayoutError(
                f"this generator is bound to its grids {self.layout.grids}: it has learned {', '.join(bound[:3])}"
                f"{' …' if len(bound) > 3 else ''} for the positions of these alone"
            )
        other.load_state_dict(mine, assign=True)
        if self.draft is not None:
            other.use_draft_model(self.draft.on(grids, quantizer))
        return other.to(next(self.parameters()).device).train(self.training)

    def forward(self, data: Tensor, conditions: Conditions | Condition, plan: Plan, draws: Draws | None = None) -> Tensor:
        """Teacher forcing: hidden states (B, N, D) or (B, N, K, D) in the order of the plan's sequence, N being L over the feed's share."""
        plan, cond = plan.to(data.device), self.condition(self.condition.drop(conditions, draws))
        if self.feed.passes == "whole" and plan.groups > 1:
            # Without causal masks each group needs a pass of its own, in which all earlier ones are known.
            return torch.cat([self.parallel(data, part, cond, draws) for part in plan.one_by_one()], dim=1)
        return self.parallel(data, plan, cond, draws)

    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None, net: Any = None) -> Tensor:
        """Hidden states of one pass, as ``forward`` has them; ``net`` is a part of the net that is run in its place."""
        slots = self.feed.parallel(data, plan, cond, draws)
        visibility = visibility_of(slots, plan.window, cond.seen_BP)
        return read((self.net if net is None else net)(slots, visibility, cond, draws=draws), slots.output_index)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """The loss of the config's objective."""
        return self.objective.losses(self, batch, phase, draws)

    def nll(
        self,
        data: Tensor,
        conditions: Conditions,
        plan: Plan,
        draws: Draws | None,
        target: Tensor | None = None,
        noise: Draws | None = None,
    ) -> Tensor:
        """(B, L) losses of the head in the order of the plan's sequence: nats where its ``likelihood`` is exact or a bound.

        ``target`` are the tokens to predict where they are not those given; ``draws`` (None: none) drop out, ``noise`` is for the head.
        """
        h = self(data, conditions, plan, draws)
        target = take(data if target is None else target, plan.sequence_BL.to(data.device))
        if h.shape[1] == target.shape[1]:
            return self.head.loss(h, target, noise)
        return self.head.loss(h, target.unflatten(1, (h.shape[1], -1)), noise).flatten(1)

    @property
    def likelihood(self) -> protocols.Likelihood:
        """Of head and order together."""
        return protocols.weakest(self.head.likelihood, self.order.likelihood)

    def log_prob(self, batch: Batch) -> Tensor:
        """Log-likelihood of the tokens in nats (B,), under the order's decoding plan; of ragged rows that of their own tokens."""
        assert batch.tokens is not None
        plan = self.order.decode(self.layout, batch.rows, SampleDraws.of(0, 0, batch.rows))
        nll = self.nll(tokens_of(batch.tokens), batch.conditions, plan, None)
        valid = in_sequence(batch.tokens, plan)
        return -(nll if valid is None else nll.masked_fill(~valid, 0.0)).sum(1)

    @property
    def draft(self) -> GroupGenerator | None:
        """A smaller generator over the same tokens, which drafts for this one in speculative decoding; no part of this one."""
        return self._draft[0] if self._draft else None

    def use_draft_model(self, model: GroupGenerator | None) -> None:
        """Take this generator to draft (None: none)."""
        self._draft = [] if model is None else [model]

    def check_sampler(self, sampler: Sampler) -> None:
        """Refuse steps that the order does not leave open, tokens that it cannot order, and a decoder that these parts do not allow."""
        # A fresh layout: one that was built with the model on the meta device has positions without values.
        plan = self.order.decode(replace(self.layout), 1, SampleDraws.of(0, 0, 1), sampler.sizes)
        if sampler.visit is not None:
            if plan.choice is not None or not isinstance(self.order, Masked | Random):
                raise ConfigError(
                    f"sample.order={sampler.visit.label}: the order of this model, {self.order.label}, is not open to another"
                )
            sampler.visit.sequence(replace(self.layout), 1, SampleDraws.of(0, 0, 1))
        self.head.check_sampler(sampler)
        self.decoder_of(sampler).check(self, sampler)

    def decoder_of(self, sampler: Sampler) -> Decoder:
        """The sampler's decoder, or this generator's own: group after group."""
        return sampler.decoder or GroupWise()

    def parts(self, plan: Plan, group: int) -> tuple[SlotNet, Head]:
        """The net and the head that decode a group: the same for all groups of most."""
        return self.net, self.head

    def read(self, states: Tensor, slots: Slots) -> Tensor:
        """Hidden states of the predicted positions: (B, n, D) or (B, n, K, D)."""
        h = read(states, slots.output_index)
        return h.repeat_interleave(slots.tokens_per_slot, dim=1) if slots.tokens_per_slot > 1 else h

    def decode_steps(
        self,
        conditions: Conditions | Condition,
        sampler: Sampler,
        draws: SampleDraws,
        forced: Tensor | None = None,
        keep_L: Tensor | None = None,
        plan: Plan | None = None,
    ) -> Iterator[Decoded]:
        """Decode group after group, yielding each step.

        ``forced`` (B, L, …) tokens are taken instead of drawn ones, at all positions or at those in ``keep_L`` (L,): for tests, scoring
        and in-painting.  ``plan`` replaces the order's.
        """
        yield from GroupWise().steps(DecodingSession(self, conditions, sampler, draws, plan=plan, given=forced, keep_L=keep_L))

    def decode(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws, **given: Any) -> tuple[Tokens, Trace]:
        """One sample per row of the condition by the sampler's decoder, and how it was made; ``given``: see ``DecodingSession``.

        Raises:
            ConfigError: the decoder cannot work on this generator.
        """
        decoder = self.decoder_of(sampler)
        decoder.check(self, sampler)
        return decoder.run(self, conditions, sampler, draws, **given)

    def generate(self, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """One sample per row of the condition."""
        return self.decode(conditions, sampler, draws)[0]

    def inpaint(self, tokens: Tokens, keep_L: Tensor, conditions: Conditions | Condition, sampler: Sampler, draws: SampleDraws) -> Tokens:
        """Samples that hold the given tokens where ``keep_L`` (L,) is true, without training for it.

        What is kept is known to all that is drawn where the order may start anywhere, else only to what comes later.
        """
        self.layout.check(tokens.layout)
        return self.decode(conditions, sampler, draws, given=tokens_of(tokens), keep_L=keep_L)[0]


def rows_of(conditions: Conditions | Condition) -> int:
    """Number of rows of a request."""
    return conditions.rows


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

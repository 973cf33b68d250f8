"""What a feed offers: the inputs of the net, for all groups at once or for one group after another.

Each feed has a parallel form (teacher forcing: the true tokens are known) and an incremental form (decoding:
one group at a time); tests hold them equal.  Shapes: B rows, L positions, S slots, T keys, P prefix slots,
N predicted positions, K hidden states of a slot, D width, Q codebooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Tokenizer, TokenLayout, Tokens
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots


class Feed(nn.Module, ABC):
    """Between tokens and net; concrete ones nest a frozen ``Config``."""

    class Config(config.Config, ABC):
        """What a feed is made from."""

        def build(self, layout: TokenLayout, width: int, tokenizer: Any) -> Feed:
            """The feed for these tokens; ``tokenizer`` is the tokenizer's config, whose ``quantizer`` some feeds take.

            Raises:
                LayoutError: the feed does not fit the tokens.
            """
            return cast(Feed, self.construct(layout=layout, width=width, quantizer=getattr(tokenizer, "quantizer", None)))

    #: Slots of each token in a ``window``.
    window_slots: ClassVar[int] = 1

    #: ``cached``: later steps see the slots of earlier ones.  ``whole``: each step is given all slots anew, with full attention.
    passes: ClassVar[Literal["cached", "whole"]] = "cached"

    def adopt(self, tokenizer: Tokenizer) -> None:
        """Copy, frozen, what the feed needs of the tokenizer."""

    def corrupt(self, data: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """In training: the tokens to give to the net in place of these, and the targets, both shaped as ``data``."""
        return data, data

    def traits(self, plan: Plan) -> Traits:
        """What other parts may depend on (``agreement``)."""
        return {}

    def requires(self, plan: Plan) -> Traits:
        """What other parts must have (``agreement``)."""
        return {}

    def check(self, plan: Plan) -> None:
        """Raise ``LayoutError`` for a plan that this feed cannot follow."""

    @abstractmethod
    def slots(self, plan: Plan, prefix: int) -> int:
        """Slots that a cache must hold for one sample."""

    @abstractmethod
    def parallel(self, data: Tensor, plan: Plan, cond: Conditioned, draws: Draws | None) -> Slots:
        """Slots of all groups, for known tokens (B, L), (B, L, Q) or (B, L, C)."""

    @abstractmethod
    def start(self, plan: Plan, cond: Conditioned) -> Any:
        """State of decoding before the first group."""

    @abstractmethod
    def step(self, state: Any, plan: Plan, cond: Conditioned, group: int) -> Slots:
        """New slots from which this group is predicted."""

    @abstractmethod
    def push(self, state: Any, plan: Plan, group: int, data: Tensor, place_Bn: Tensor) -> Any:
        """State after the group's tokens are known, at these layout positions."""

    def modulation(self, plan: Plan, cond: Conditioned) -> Tensor:
        """Condition vectors (B, T, D) of all T slots of a decoding in its order, or (B, 1, D) where all slots have the same."""
        return cond.vector_BD[:, None]

    def held(self, tokens: Tokens, plan: Plan) -> Tokens:
        """What a decoding hands out: these tokens, or of a plan that leaves positions out the tokens of the others."""
        return tokens

    def window(self, token_Bn: Tensor, entry_Bn: Tensor, plan: Plan, cond: Conditioned) -> Slots:
        """Slots of successive tokens, each row at its own entries of the sequence: token i predicts the entry after its own.

        For plans of one position a group.  Feeds without it are decoded group after group only.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no window of drafted tokens")


def take(data: Tensor, place_BN: Tensor) -> Tensor:
    """Tokens (B, L, …) at layout positions (B or 1, N): (B, N, …)."""
    index = place_BN.expand(len(data), -1)
    return data.gather(1, index.view(*index.shape, *[1] * (data.ndim - 2)).expand(*index.shape, *data.shape[2:]))


def prefix_groups(prefix_BPD: Tensor) -> Tensor:
    """(1, P) groups of the prefix slots: causal among themselves, the last one predicts group 0."""
    length = prefix_BPD.shape[1]
    return torch.arange(1 - length, 1, device=prefix_BPD.device)[None]


def nowhere(like_1S: Tensor) -> Tensor:
    """Places of slots that stand nowhere."""
    return torch.full_like(like_1S, -1)


def span(start: int, stop: int, device: torch.device) -> Tensor:
    """(1, n) slots from start to stop."""
    return torch.arange(start, stop, device=device)[None]

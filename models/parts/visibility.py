"""Which slots a slot attends to, as one value that says by itself whether an attention kernel without a mask can do it.

A query of S new slots attends to T keys: the T - S slots that are cached, then the S new ones.  Nothing here reads numbers
back from the device: types and shapes decide which kernel runs.
Shapes: B rows (1 when all rows agree), S queries, T keys, P prefix slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: ``full``: every key, no mask; ``causal``: the kernel's own lower triangle, no mask; ``mask``: a boolean mask is needed.
Kernel = Literal["full", "causal", "mask"]


class Visibility(ABC):
    """The keys that each query attends to; ``a & b`` keeps what both let through."""

    def kernel(self, queries: int, keys: int) -> Kernel:
        """The cheapest attention kernel for so many queries and keys."""
        return "mask"

    @abstractmethod
    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """(B or 1, S or 1, T) true where a query attends to a key."""

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """The boolean mask of an attention kernel, the same for all heads: (B or 1, 1, S or 1, T)."""
        return self.seen(queries, keys, device).unsqueeze(1)

    def evaluated(self, queries: int, keys: int, device: torch.device) -> Visibility:
        """``Everything``, ``Causal`` or a ``Mask``: made once, where many layers attend alike."""
        if self.kernel(queries, keys) != "mask":
            return self
        return Mask(self.seen(queries, keys, device))

    def part(self, queries: slice, keys: slice) -> Visibility:
        """What some of the queries attend to of some of the keys; of an evaluated value that is not ``Causal``."""
        raise TypeError(f"{type(self).__name__} has no parts: evaluate it first")

    def __and__(self, other: Visibility) -> Visibility:
        if isinstance(self, Everything) or isinstance(other, Everything):
            return other if isinstance(self, Everything) else self
        return Intersection((self, other))


@dataclass(frozen=True)
class Everything(Visibility):
    """Every query attends to every key."""

    def kernel(self, queries: int, keys: int) -> Kernel:
        return "full"

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return torch.ones((1, queries, keys), dtype=torch.bool, device=device)

    def part(self, queries: slice, keys: slice) -> Everything:
        return self


#: As a default of arguments.
EVERYTHING = Everything()


@dataclass(frozen=True)
class Causal(Visibility):
    """A query attends to itself and to all slots before it, the cached ones among them."""

    def kernel(self, queries: int, keys: int) -> Kernel:
        # PyTorch's causal kernel aligns the triangle with the first key, so it fits only where nothing is cached.
        return "causal" if queries == keys else "full" if queries == 1 else "mask"

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return torch.ones((1, queries, keys), dtype=torch.bool, device=device).tril(keys - queries)


@dataclass(frozen=True, eq=False)
class Groups(Visibility):
    """A query of group i attends to the keys of group j <= i and, with a ``window``, j >= i - window.

    ``query_BS`` and ``key_BT`` are the groups.  Groups below zero are prefixes (conditions): a window never hides them.
    """

    query_BS: Tensor
    key_BT: Tensor
    window: int | None = None

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return self.seen_BST

    @property
    def seen_BST(self) -> Tensor:
        """(B or 1, S, T) true where a query attends to a key."""
        query, key = self.query_BS.unsqueeze(2), self.key_BT.unsqueeze(1)
        seen = key <= query
        if self.window is not None:
            seen = seen & ((key >= query - self.window) | (key < 0))
        return seen


@dataclass(frozen=True, eq=False)
class Segments(Visibility):
    """A key with a segment id is for queries of that segment only; keys of segment -1 are for all."""

    query_BS: Tensor
    key_BT: Tensor

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        key = self.key_BT[:, None]
        return (key == -1) | (key == self.query_BS[:, :, None])


@dataclass(frozen=True, eq=False)
class Tree(Visibility):
    """Each new slot attends to its ancestors, itself and all cached slots.

    ``parent_BS`` (B or 1, S) is the index of the parent among the new slots, -1 for a root: drafts of speculative decoding
    (SpecInfer, arXiv:2305.09781, "tree attention").  Parents may stand in any order.
    """

    parent_BS: Tensor

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        itself = torch.arange(queries, device=device)
        # Ancestors within 2^k steps are those within 2^(k-1) steps of those within 2^(k-1) steps: log2(S) products reach the root.
        reach_BSS = ((self.parent_BS[:, :, None] == itself) | (itself[:, None] == itself)).float()
        for _ in range(max(1, (queries - 1).bit_length())):
            reach_BSS = (reach_BSS @ reach_BSS).clamp_max(1)
        cached = torch.ones((len(reach_BSS), queries, keys - queries), dtype=torch.bool, device=device)
        return torch.cat([cached, reach_BSS > 0], dim=2)


@dataclass(frozen=True, eq=False)
class Padding(Visibility):
    """Hides the prefix keys that are padding, ``seen_BP`` false; a slot always attends to itself, so that no row of scores is empty."""

    seen_BP: Tensor

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        rest = self.seen_BP.new_ones((len(self.seen_BP), keys - self.seen_BP.shape[1]))
        slot = torch.arange(keys, device=device)
        # The new slots are the last S keys: query i is key T - S + i.
        itself_ST = slot[keys - queries :, None] == slot
        return torch.cat([self.seen_BP, rest], dim=1)[:, None] | itself_ST


@dataclass(frozen=True, eq=False)
class Mask(Visibility):
    """An explicit mask ``seen_BST`` (B or 1, S or 1, T), true where a query attends to a key."""

    seen_BST: Tensor

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return self.seen_BST

    def part(self, queries: slice, keys: slice) -> Mask:
        return Mask(self.seen_BST[:, queries, keys])


@dataclass(frozen=True, eq=False)
class Intersection(Visibility):
    """What all parts let through."""

    parts: tuple[Visibility, ...]

    def seen(self, queries: int, keys: int, device: torch.device) -> Tensor:
        first, *rest = (part.seen(queries, keys, device) for part in self.parts)
        for other in rest:
            first = first & other
        return first

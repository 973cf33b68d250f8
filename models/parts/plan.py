"""The plan of one pass: positions sorted into groups, and how members of a group are chosen while decoding.

Shapes: B rows (1 when all rows share the plan), L positions, G groups, N drawn tokens.
One rule gives every attention mask of the family (``visibility.Groups``): a slot attends to the slots whose group is not later
than its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tokenloom.models.core import config
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.parts.drawn import Drawn


class Choice(config.Config, ABC):
    """How the members of a group are chosen while decoding, where the model's own confidence decides."""

    @abstractmethod
    def confidence(self, drawn: Drawn, step: int, steps: int, draws: SampleDraws) -> Tensor:
        """(B, N) how sure each token drawn in this step of ``steps`` is: the surest are kept.

        Raises:
            ValueError: the head has no logits.
        """


@dataclass(frozen=True)
class Plan:
    """Positions sorted by the group that predicts them.

    ``sequence_BL`` lists layout positions group after group; ``sizes`` are the groups' lengths (the same in
    all rows, summing to L).  ``window`` limits visibility to that many earlier groups (None: all, HMAR: 0 or 1).
    ``known_BL`` marks layout positions whose tokens are given from the start (masked training); ``weight_BL`` weighs the
    loss by layout position, rows summing to one on average over the global batch (None: all alike).  ``place_BG`` are the
    layout positions at which whole groups stand (None: at their first member).  With a ``choice`` only the sizes
    are fixed: which positions a group takes is decided while decoding, among all of the sequence or, with ``reach``, among the
    entries of the sequence from the first to before the second number of the group's pair.
    """

    sequence_BL: Tensor
    sizes: tuple[int, ...]
    window: int | None = None
    known_BL: Tensor | None = None
    weight_BL: Tensor | None = None
    place_BG: Tensor | None = None
    choice: Choice | None = None
    reach: tuple[tuple[int, int], ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups G, the decoding steps."""
        return len(self.sizes)

    @property
    def group_L(self) -> Tensor:
        """(L,) group of each entry of the sequence."""
        return torch.arange(self.groups, device=self.sequence_BL.device).repeat_interleave(
            torch.tensor(self.sizes, device=self.sequence_BL.device), output_size=self.sequence_BL.shape[1]
        )

    @property
    def group_BL(self) -> Tensor:
        """(B, L) group of each layout position."""
        return torch.zeros_like(self.sequence_BL).scatter_(1, self.sequence_BL, self.group_L.expand_as(self.sequence_BL))

    def start(self, group: int) -> int:
        """Entries of the sequence before a group."""
        return sum(self.sizes[:group])

    def candidates(self, group: int) -> Tensor:
        """(B, n) layout positions of which one group is made: its members, or those among which a choice finds them."""
        if self.choice is None:
            return self.members(group)
        start, stop = self.reach[group] if self.reach else (0, self.sequence_BL.shape[1])
        return self.sequence_BL[:, start:stop]

    def members(self, group: int) -> Tensor:
        """(B, n) layout positions of one group."""
        start = self.start(group)
        return self.sequence_BL[:, start : start + self.sizes[group]]

    def to(self, device: torch.device) -> Plan:
        """The plan on a device."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device, non_blocking=True)

        return replace(
            self,
            sequence_BL=self.sequence_BL.to(device, non_blocking=True),
            known_BL=move(self.known_BL),
            weight_BL=move(self.weight_BL),
            place_BG=move(self.place_BG),
        )

    def one_by_one(self) -> list[Plan]:
        """A plan for each group alone, with all earlier ones known."""
        known = torch.zeros_like(self.sequence_BL, dtype=torch.bool)
        plans = []
        for group in range(self.groups):
            members = self.members(group)
            plans.append(Plan(members, (self.sizes[group],), self.window, known))
            known = known.scatter(1, members, True)
        return plans

    def repeat(self, times: int) -> Plan:
        """The plan for the rows several times over (conditional and null rows); shared plans stay as they are."""
        return replace(self, sequence_BL=self.sequence_BL.repeat(times, 1)) if len(self.sequence_BL) > 1 else self


def grouped(keys: Sequence[tuple[int, ...]], window: int | None = None) -> Plan:
    """The plan whose groups are the positions with equal key, in ascending key order, storage order inside."""
    index = sorted(range(len(keys)), key=lambda i: keys[i])
    sizes: list[int] = []
    for before, now in zip([None, *index], index):
        if before is not None and keys[before] == keys[now]:
            sizes[-1] += 1
        else:
            sizes.append(1)
    return Plan(torch.tensor([index]), tuple(sizes), window)


class Cut(Protocol):
    """A rule that cuts a number of positions into successive groups (``orders.sizes.Sizes``)."""

    def cut(self, length: int) -> tuple[int, ...]: ...


def known_first(plan: Plan, keep_L: Tensor, rule: Cut) -> Plan:
    """The plan with the positions of ``keep_L`` as its first group and the others after it in their order, cut by the rule anew: so
    many steps for what is unknown as there are for the whole, along the same curve."""
    kept_BL = keep_L.to(plan.sequence_BL.device)[plan.sequence_BL]
    sequence_BL = plan.sequence_BL.gather(1, (~kept_BL).long().argsort(dim=1, stable=True))
    known, rest = int(keep_L.sum()), int((~keep_L).sum())
    return replace(plan, sequence_BL=sequence_BL, sizes=((known,) if known else ()) + (rule.cut(rest) if rest else ()))

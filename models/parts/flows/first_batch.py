"""Activation norms set by the first step's global batch, the same on every worker whatever their number.

A rank sees its own rows alone and may pass them in several parts, so that the first step is taken with the norms as they are built;
after it they are set by all rows of that step.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Density


class FirstBatch(Density):
    """A density with norms that the first data set."""

    #: How many tensors of the signal's shape ``start`` takes.
    starts_from: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._first: list[tuple[Tensor, ...]] = []

    @abstractmethod
    def start(self, *given: Any) -> None:
        """Set the norms by rows of data, together with those of all other workers."""

    def keep_first(self, *given: Tensor) -> None:
        """Keep what a step of training is given, until the norms are set."""
        if self.training and not bool(self.get_buffer("started")):
            self._first.append(tuple(each.detach() for each in given))

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Set the norms once, after the first step."""
        if not bool(self.get_buffer("started")):
            none = (torch.zeros((0, *self.shape), device=self.get_buffer("started").device),) * self.starts_from
            self.start(*(torch.cat(each) for each in zip(*(self._first or [none]))))
            self.get_buffer("started").fill_(True)
        self._first.clear()
        return {}

"""Block norms modulated by the task that a shared net is at (Hi-MAR, arXiv:2505.20288).

Shapes: B rows, S slots, D width, T tasks; a modulation is (B or 1, 1, T), one for the task and zero for all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.parts.norms import BlockNorm, Branch, Kind, Modulation, norm


class TaskNorm(BlockNorm):
    """Scale and gate of each branch from a vector of the task, by one map for all blocks, which each block scales and shifts by numbers
    of its own for each task; fresh blocks neither scale nor gate."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.task", label="task scales and gates"):
        """``tasks`` that share the net."""

        tasks: int = 2
        kind: Kind = "layer"
        eps: float = 1e-6

    def __init__(self, config: Config, width: int, depth: int, branches: int) -> None:
        super().__init__(branches)
        self.branches = nn.ModuleList(
            [nn.ModuleList([norm(config.kind, width, config.eps) for _ in range(branches)]) for _ in range(depth)]
        )
        self.final = norm(config.kind, width, config.eps)
        self.task, self.map = nn.Embedding(config.tasks, width), nn.Linear(width, 2 * branches * width)
        fresh = torch.cat([torch.zeros(width), torch.ones(width)] * branches).repeat(config.tasks, 1)
        self.factor = nn.ParameterList([torch.zeros_like(fresh) for _ in range(depth)])
        self.offset = nn.ParameterList([fresh.clone() for _ in range(depth)])

    def shared(self, modulation: Tensor | Modulation) -> Tensor:
        """(B or 1, 1, 2 branches D) what the map makes of the task's vector."""
        return self.map(F.silu(cast(Tensor, modulation) @ self.task.weight))

    def modulate(self, block: int, modulation: Tensor | Modulation, shared: Tensor | None) -> list[Branch | None]:
        task = cast(Tensor, modulation)
        values = cast(Tensor, shared) * (task @ self.factor[block]) + task @ self.offset[block]
        nothing = values.new_zeros((1, 1, 1))
        parts = values.chunk(2 * self.a_block, -1)  # scale and gate of each branch
        return [(parts[2 * i + 1], parts[2 * i], nothing) for i in range(self.a_block)]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        return cast(nn.ModuleList, self.branches[block])[branch](x) * (1 + cast(Branch, how)[1])

    def gate(self, y: Tensor, how: Branch | None) -> Tensor:
        return y * cast(Branch, how)[0]

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        return self.final(x)

"""A stack of residual feed-forward branches with a norm before each.  Shapes: (…, D) -> (…, D)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tokenloom.models.parts.mlp import MLP


class ResidualMLP(nn.Module):
    """``x + mlp(norm(x))`` so many times; the branches' last maps start at ``std`` over their number."""

    def __init__(self, config: MLP.Config, width: int, blocks: int, std: float = 0.02) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-5) for _ in range(blocks)])
        self.branches = nn.ModuleList([config.build(width) for _ in range(blocks)])
        for module in self.branches.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for branch in self.branches:
            cast(MLP, branch).out.weight.data /= blocks

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, self.branches):
            x = x + branch(norm(x))
        return x

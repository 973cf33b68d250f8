"""Feed-forward branches of transformer blocks.  Shapes: (…, D) -> (…, D)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added


class MLP(nn.Module, ABC):
    """A branch whose last map is ``out``; concrete ones nest a frozen ``Config``."""

    out: nn.Linear

    class Config(config.Config, ABC):
        """What a branch is made from."""

        def build(self, width: int) -> MLP:
            """The module for this width."""
            return self.construct(width)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class SwiGLU(MLP):
    """Gated SiLU, or another gate (arXiv:2002.05202), hidden width 2/3 ``ratio`` D times ``multiplier``, rounded up to ``multiple_of``."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.swiglu"):
        """``multiple_of``: rounding of the hidden width; ``ratio`` of an ungated branch with as many weights; ``bias`` of all maps.

        Both factors of the hidden width are cut to whole numbers, one after the other, as Llama's are.
        """

        multiple_of: int = 256
        ratio: float = 4.0
        multiplier: Added[float] = 1.0
        bias: Added[Literal["yes", "no"]] = "no"
        act: Added[Literal["silu", "gelu"]] = "silu"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        hidden = -(-int(config.multiplier * int(2 * config.ratio * width / 3)) // config.multiple_of) * config.multiple_of
        bias, self.act = config.bias == "yes", config.act
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        return self.out((F.silu(gate) if self.act == "silu" else F.gelu(gate)) * self.up(x))


class GELU(MLP):
    """Two linear maps with biases around a GELU."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.gelu"):
        """``ratio`` of the hidden width to the width; ``form`` of the GELU; ``bias`` of both maps."""

        ratio: float = 4.0
        form: Literal["tanh", "none"] = "tanh"
        bias: Added[Literal["yes", "no"]] = "yes"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.form = config.form
        self.up = nn.Linear(width, round(width * config.ratio), bias=config.bias == "yes")
        self.out = nn.Linear(round(width * config.ratio), width, bias=config.bias == "yes")

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x), approximate=self.form))


class GEGLU(MLP):
    """Gated GELU (arXiv:2002.05202), with Gemma's tanh form."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.geglu"):
        """``ratio`` of the hidden width to the width; ``bias`` of all maps."""

        ratio: float = 4.0
        bias: Literal["yes", "no"] = "yes"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        hidden, bias = int(width * config.ratio), config.bias == "yes"
        self.gate, self.up = nn.Linear(width, hidden, bias=bias), nn.Linear(width, hidden, bias=bias)
        self.out = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class Tanh(MLP):
    """Two linear maps with biases around a tanh (the feed-forward branches of enhancing-transformers' ViT-VQGAN)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.tanh"):
        """``ratio`` of the hidden width to the width."""

        ratio: float = 4.0

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, round(width * config.ratio))
        self.out = nn.Linear(round(width * config.ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.up(x)))


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

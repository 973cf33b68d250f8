"""Feed-forward branches of transformer blocks.  Shapes: (…, D) -> (…, D)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config


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
    """Gated SiLU (arXiv:2002.05202), hidden width 2/3 ``ratio`` D rounded up to ``multiple_of``, no biases."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.swiglu"):
        """``multiple_of``: rounding of the hidden width; ``ratio`` of an ungated branch with as many weights."""

        multiple_of: int = 256
        ratio: float = 4.0

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        hidden = -(-int(2 * config.ratio * width / 3) // config.multiple_of) * config.multiple_of
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.up(x))


class GELU(MLP):
    """Two linear maps with biases around a GELU."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config, tag="mlp.gelu"):
        """``ratio`` of the hidden width to the width; ``form`` of the GELU."""

        ratio: float = 4.0
        form: Literal["tanh", "none"] = "tanh"

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.form = config.form
        self.up = nn.Linear(width, round(width * config.ratio))
        self.out = nn.Linear(round(width * config.ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x), approximate=self.form))

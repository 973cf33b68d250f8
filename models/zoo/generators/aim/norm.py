"""Block norms modulated by the condition, with one map for several blocks.

Shapes: B rows, S slots, D width; a modulation vector is (B, 1 or S, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.norms import BlockNorm, Branch, Modulation, norm, through


class GroupAdaLN(BlockNorm):
    """Adaptive RMS norm whose blocks take turns over a few maps of the condition, plus a learned offset a block (arXiv:2408.12245).

    Block i has the map i mod ``groups``: fewer parameters than one map a block, more freedom than one for all.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.group_adaln", label="adaLN in groups"):
        """``groups``: number of maps."""

        groups: int = 4
        eps: float = 1e-5

    def __init__(self, config: Config, width: int, depth: int, branches: int) -> None:
        super().__init__(branches)
        if config.groups < 1:
            raise ConfigError(f"norm.groups={config.groups}: must be at least 1")
        self.eps, self.width = config.eps, width
        self.maps = nn.ModuleList([nn.Linear(width, 3 * branches * width) for _ in range(min(config.groups, depth))])
        self.offset = nn.Embedding(depth, 3 * branches * width)
        self.final = nn.Linear(width, 2 * width)

    @torch.no_grad()
    def initialise(self) -> None:
        """Offsets of size 1/sqrt(D): they are the first gammas, which must not all be zero; the last norm starts plain."""
        self.offset.weight.normal_(std=self.width**-0.5)
        self.final.weight.zero_()

    def shared(self, modulation: Tensor | Modulation) -> Tensor:
        """Outputs (groups, B, 1 or S, 3 branches D) of the maps."""
        return torch.stack([through(linear, modulation) for linear in self.maps])

    def modulate(self, block: int, modulation: Tensor | Modulation, shared: Tensor | None) -> list[Branch | None]:
        """(gamma, scale, shift) of each branch, each (B, 1 or S, D)."""
        values = cast(Tensor, shared)[block % len(self.maps)] + self.offset.weight[block]
        parts = values.chunk(3 * self.a_block, dim=-1)
        return [(parts[3 * i], parts[3 * i + 1], parts[3 * i + 2]) for i in range(self.a_block)]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        _, scale, shift = cast(Branch, how)
        return F.rms_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift

    def gate(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output times gamma."""
        return y * cast(Branch, how)[0]

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        scale, shift = through(self.final, modulation).chunk(2, dim=-1)
        return F.rms_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift


class RMSAdaLN(BlockNorm):
    """Learned RMS norms, modulated by the condition: shift, scale and gate of each block (arXiv:2408.12245, released code).

    Each block has a map of its own that starts at zero, so that blocks start as identities; or, in groups, blocks take turns over a few
    maps and have a learned offset each.  The stream ends with a norm, and a second one that the condition modulates.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.rms_adaln", label="adaLN"):
        """``maps`` that blocks share (0: one a block)."""

        maps: int = 0
        eps: float = 1e-5

        @property
        def label(self) -> str:
            return "adaLN in groups" if self.maps else "adaLN"

        def __post_init__(self) -> None:
            if self.maps < 0:
                raise ConfigError(f"norm.maps={self.maps}: must not be negative")

    def __init__(self, config: Config, width: int, depth: int, branches: int) -> None:
        super().__init__(branches)
        self.width = width
        self.norms = nn.ModuleList([nn.ModuleList([norm("rms", width, config.eps) for _ in range(branches)]) for _ in range(depth)])
        self.maps = nn.ModuleList([nn.Linear(width, 3 * branches * width) for _ in range(min(config.maps, depth) or depth)])
        self.offset = nn.Embedding(depth, 3 * branches * width) if config.maps else None
        self.before = nn.Sequential(norm("rms", width, config.eps), norm("rms", width, config.eps))
        self.final = nn.Linear(width, 2 * width)

    @torch.no_grad()
    def initialise(self) -> None:
        """Maps of single blocks and the last one are zero; offsets, which are the first gates of groups, of size 1/sqrt(D)."""
        self.final.weight.zero_()
        if self.offset is None:
            for linear in self.maps:
                cast(nn.Linear, linear).weight.zero_()
        else:
            self.offset.weight.normal_(std=self.width**-0.5)

    def shared(self, modulation: Tensor | Modulation) -> Tensor | None:
        """Outputs (groups, B, 1 or S, 3 branches D) of the maps that blocks share."""
        if self.offset is None:
            return None
        return torch.stack([through(linear, modulation) for linear in self.maps])

    def modulate(self, block: int, modulation: Tensor | Modulation, shared: Tensor | None) -> list[Branch | None]:
        """(gate, scale, shift) of each branch, each (B, 1 or S, D)."""
        if shared is None or self.offset is None:
            values = through(self.maps[block], modulation)
        else:
            values = shared[block % len(self.maps)] + self.offset.weight[block]
        parts = values.chunk(3 * self.a_block, dim=-1)
        return [(parts[3 * i], parts[3 * i + 1], parts[3 * i + 2]) for i in range(self.a_block)]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        _, scale, shift = cast(Branch, how)
        return cast(nn.ModuleList, self.norms[block])[branch](x) * (1 + scale) + shift

    def gate(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output times its gate."""
        return y * cast(Branch, how)[0]

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        scale, shift = through(self.final, modulation).chunk(2, dim=-1)
        return self.before(x) * (1 + scale) + shift

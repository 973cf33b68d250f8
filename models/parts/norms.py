"""Block norms: what stands before and after a residual branch, plain or modulated by the condition.

Shapes: B rows, S slots, T slots of a decoding in its order, D width; a modulation vector is (B, 1 or S, D).  Every norm has
``modulate`` for the values of a block, and ``enter`` and ``join`` around each branch, so that a block does not know which kind it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config
from tokenloom.models.core.config import Added

Branch = tuple[Tensor, Tensor, Tensor]  # gamma, scale, shift, each broadcastable to (B, S, D)
Kind = Literal["rms", "rms_bias", "rms_offset", "layer", "plain", "plain_rms", "none"]


#: Rows of one product: with fewer, reading the weights takes longer than the arithmetic.
ROWS = 128


class Ahead:
    """The vectors of all slots (B, T, D), or one for all (T = 1), and the outputs of maps of them that are in use.

    Vectors that are known before decoding starts need not wait for their step: each map is applied to those of the next steps
    together, and its output is kept until decoding is past them.
    """

    def __init__(self, vector_BTD: Tensor) -> None:
        self.active_BTD = F.silu(vector_BTD)
        self.block = max(1, ROWS // len(vector_BTD))
        self._made: dict[nn.Module, tuple[int, Tensor]] = {}

    def part(self, start: int, slots: int) -> Modulation:
        """Those of ``slots`` slots from ``start`` on."""
        return Modulation(self, 0, 1) if self.active_BTD.shape[1] == 1 else Modulation(self, start, slots)

    def values(self, linear: nn.Module, start: int, slots: int) -> Tensor:
        """``linear(silu(vectors))`` of these slots."""
        first, made = self._made.get(linear, (0, None))
        if made is None or start < first or start + slots > first + made.shape[1]:
            first, made = start, linear(self.active_BTD[:, start : start + max(slots, self.block)].contiguous())
            self._made[linear] = first, made
        return made[:, start - first : start - first + slots]


@dataclass(frozen=True)
class Modulation:
    """The vectors of some slots, in place of a tensor (B, 1 or S, D)."""

    ahead: Ahead
    start: int
    slots: int

    def through(self, linear: nn.Module) -> Tensor:
        """``linear(silu(vectors))``."""
        return self.ahead.values(linear, self.start, self.slots)


def through(linear: nn.Module, modulation: Tensor | Modulation) -> Tensor:
    """``linear(silu(vectors))``, (B, 1 or S, n)."""
    return modulation.through(linear) if isinstance(modulation, Modulation) else linear(F.silu(modulation))


class BiasedRMSNorm(nn.RMSNorm):
    """A root-mean-square norm with weights and biases."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class OffsetRMSNorm(nn.Module):
    """A root-mean-square norm whose weights are one more than its parameters (Gemma)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], 1 + self.weight, self.eps)


def norm(kind: Kind, width: int, eps: float) -> nn.Module:
    """A root-mean-square norm with weights (and biases; ``rms_offset``: with weights around zero), a layer norm with both, a ``plain``
    one of either without any, or none at all."""
    if kind == "none":
        return nn.Identity()
    if kind == "rms_offset":
        return OffsetRMSNorm(width, eps)
    if kind in ("rms", "plain_rms"):
        return nn.RMSNorm(width, eps=eps, elementwise_affine=kind == "rms")
    if kind == "rms_bias":
        return BiasedRMSNorm(width, eps)
    return nn.LayerNorm(width, eps=eps, elementwise_affine=kind == "layer")


class BlockNorm(nn.Module, ABC):
    """The norms of a stack of blocks; concrete ones nest a frozen ``Config``."""

    class Config(config.Config, ABC):
        """What norms are made from."""

        @property
        def suffix(self) -> str:
            """What these norms add to a net's label."""
            return f" + {self.label}" if self.label else ""

        def build(self, width: int, depth: int, branches: int = 2, condition: int | None = None) -> BlockNorm:
            """Norms of a stack of ``depth`` blocks of so many branches; modulation vectors are of width ``condition``, if not ``width``."""
            return self.construct(width, depth, branches, condition=condition or width)

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        self.a_block = branches

    def initialise(self) -> None:
        """Called after the net has drawn its weights."""

    def shared(self, modulation: Tensor | Modulation) -> Tensor | None:
        """What all blocks share of the modulation."""
        return None

    def modulate(self, block: int, modulation: Tensor | Modulation, shared: Tensor | None) -> list[Branch | None]:
        """The values of a block's branches."""
        return [None] * self.a_block

    @abstractmethod
    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        """The branch's input."""

    def gate(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output before dropout."""
        return y

    def join(self, block: int, branch: int, x: Tensor, y: Tensor) -> Tensor:
        """The residual stream after the branch."""
        return x + y

    @abstractmethod
    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        """The norm before the head."""


class PreNorm(BlockNorm):
    """A learned norm before each branch, and another of its output where one is asked for."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.pre"):
        """``kind``: rms (LlamaGen) or layer; ``last``: whether the stack ends with a norm or with the raw stream; ``post``: the norm of a
        branch's output."""

        kind: Kind = "rms"
        eps: float = 1e-5
        last: Literal["norm", "raw"] = "norm"
        post: Added[Kind] = "none"

        @property
        def label(self) -> str:
            return ""  # the usual ones, which no table names

    def __init__(self, config: Config, width: int, depth: int, branches: int) -> None:
        super().__init__(branches)
        self.branches = nn.ModuleList(
            [nn.ModuleList([norm(config.kind, width, config.eps) for _ in range(branches)]) for _ in range(depth)]
        )
        self.final = norm(config.kind, width, config.eps) if config.last == "norm" else nn.Identity()
        self.post = nn.ModuleList([nn.ModuleList([norm(config.post, width, config.eps) for _ in range(branches)]) for _ in range(depth)])

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        return cast(nn.ModuleList, self.branches[block])[branch](x)

    def join(self, block: int, branch: int, x: Tensor, y: Tensor) -> Tensor:
        return x + cast(nn.ModuleList, self.post[block])[branch](y)

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        return self.final(x)


class PostNorm(BlockNorm):
    """A learned norm of the sum after each branch, none before the head (BERT, arXiv:1706.03762)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.post", label="post-norm"):
        """``eps`` of the layer norms."""

        eps: float = 1e-12

    def __init__(self, config: Config, width: int, depth: int, branches: int) -> None:
        super().__init__(branches)
        self.branches = nn.ModuleList([nn.ModuleList([norm("layer", width, config.eps) for _ in range(branches)]) for _ in range(depth)])

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        return x

    def join(self, block: int, branch: int, x: Tensor, y: Tensor) -> Tensor:
        return cast(nn.ModuleList, self.branches[block])[branch](x + y)

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        return x


class AdaLN(BlockNorm):
    """Adaptive layer norm (DiT, arXiv:2212.09748): gamma, scale and shift of each branch from the modulation vector.

    ``sharing="own"``: each block has a linear map from the vector; ``"shared"``: one map for all blocks
    plus a learned offset a block (VAR-d36, Infinity).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BlockNorm.Config, tag="norm.adaln", label="adaLN"):
        """``kind`` of the blocks' norms and ``final`` of the last one, which the condition modulates or not (``last``); ``gamma``: size
        of the initial gammas, near zero so that blocks start as identities."""

        eps: float = 1e-6
        kind: Kind = "plain"
        final: Kind = "plain"
        sharing: Literal["own", "shared"] = "own"
        gamma: float = 1e-2
        last: Added[Literal["adaptive", "plain"]] = "adaptive"

    def __init__(self, config: Config, width: int, depth: int, branches: int, condition: int) -> None:
        super().__init__(branches)
        self.width, self.gamma = width, config.gamma
        self.branches = nn.ModuleList(
            [nn.ModuleList([norm(config.kind, width, config.eps) for _ in range(branches)]) for _ in range(depth)]
        )
        self.maps = nn.ModuleList([nn.Linear(condition, 3 * branches * width) for _ in range(depth if config.sharing == "own" else 1)])
        self.offset: nn.Embedding | None = nn.Embedding(depth, 3 * branches * width) if config.sharing == "shared" else None
        self.before = norm(config.final, width, config.eps)
        self.final: nn.Linear | None = nn.Linear(condition, 2 * width) if config.last == "adaptive" else None

    @torch.no_grad()
    def initialise(self) -> None:
        """Shrink fresh maps: gammas start near zero, so that blocks start near the identity."""
        for linear in self.maps:
            weight = cast(nn.Linear, linear).weight
            weight[: self.a_block * self.width] *= self.gamma
            weight[self.a_block * self.width :] *= 0.5
        if self.offset is not None:
            self.offset.weight.normal_(std=self.width**-0.5)
            self.offset.weight[:, : self.a_block * self.width] *= self.gamma

    def shared(self, modulation: Tensor | Modulation) -> Tensor | None:
        """The map's output that all blocks share, or None when each block has its own."""
        return through(self.maps[0], modulation) if self.offset is not None else None

    def modulate(self, block: int, modulation: Tensor | Modulation, shared: Tensor | None) -> list[Branch | None]:
        """(gamma, scale, shift) of each branch; of two: order gamma1, gamma2, scale1, scale2, shift1, shift2."""
        if shared is not None and self.offset is not None:
            values = shared + self.offset.weight[block]
        else:
            values = through(self.maps[block], modulation)
        n, parts = self.a_block, values.chunk(3 * self.a_block, dim=-1)  # each (B, 1 or S, D)
        return [(parts[i], parts[n + i], parts[2 * n + i]) for i in range(n)]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        """Normalised x, scaled and shifted by the condition."""
        _, scale, shift = cast(Branch, how)
        return cast(nn.ModuleList, self.branches[block])[branch](x) * (1 + scale) + shift

    def gate(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output times gamma."""
        return y * cast(Branch, how)[0]

    def last(self, x: Tensor, modulation: Tensor | Modulation) -> Tensor:
        """Norm before the head; here the order is scale, shift."""
        if self.final is None:
            return self.before(x)
        scale, shift = through(self.final, modulation).chunk(2, dim=-1)
        return self.before(x) * (1 + scale) + shift

"""Block norms: what stands before and after a residual branch, plain or steered by the condition.

Shapes: B rows, S slots, D width.  Every norm has ``modulate(cond) -> three pairs of values`` for a block
and ``enter``/``leave`` around each branch, so that a block does not know which kind it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import config

Branch = tuple[Tensor, Tensor, Tensor]  # gamma, scale, shift, each broadcastable to (B, S, D)


class PreNorm(nn.Module):
    """A learned norm before each branch, nothing after it."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``kind``: rms (LlamaGen) or layer."""

        kind: Literal["rms", "layer"] = "rms"
        eps: float = 1e-5

        def build(self, width: int, depth: int) -> PreNorm:
            """Norms of a stack of ``depth`` blocks."""
            return PreNorm(self, width, depth)

    def __init__(self, config: Config, width: int, depth: int) -> None:
        super().__init__()
        make = nn.RMSNorm if config.kind == "rms" else nn.LayerNorm
        self.branches = nn.ModuleList([nn.ModuleList([make(width, eps=config.eps) for _ in range(2)]) for _ in range(depth)])
        self.final = make(width, eps=config.eps)

    def shared(self, cond_BD: Tensor | None) -> None:
        """Nothing is shared between blocks."""

    def modulate(self, block: int, cond_BD: Tensor | None, shared: Tensor | None) -> list[Branch | None]:
        """Nothing depends on the condition."""
        return [None, None]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        """The branch's input."""
        return cast(nn.ModuleList, self.branches[block])[branch](x)

    def leave(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output, to be added to the residual stream."""
        return y

    def last(self, x: Tensor, cond_BD: Tensor | None) -> Tensor:
        """The norm before the head."""
        return self.final(x)


class AdaLN(nn.Module):
    """Adaptive layer norm (DiT, arXiv:2212.09748) in VAR's form: gamma, scale, shift from the condition.

    ``sharing="own"``: each block has a linear map from the condition; ``"shared"``: one map for all blocks
    plus a learned offset a block (VAR-d36, Infinity).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``gamma``: size of the initial gammas, near zero so that blocks start as identities."""

        eps: float = 1e-6
        sharing: Literal["own", "shared"] = "own"
        gamma: float = 1e-2

        def build(self, width: int, depth: int) -> AdaLN:
            """Norms of a stack of ``depth`` blocks."""
            return AdaLN(self, width, depth)

    def __init__(self, config: Config, width: int, depth: int) -> None:
        super().__init__()
        self.eps, self.width, self.gamma = config.eps, width, config.gamma
        self.maps = nn.ModuleList([nn.Linear(width, 6 * width) for _ in range(depth if config.sharing == "own" else 1)])
        self.offset: nn.Embedding | None = nn.Embedding(depth, 6 * width) if config.sharing == "shared" else None
        self.final = nn.Linear(width, 2 * width)

    @torch.no_grad()
    def initialise(self) -> None:
        """Shrink fresh maps: gammas start near zero, so that blocks start near the identity."""
        for linear in self.maps:
            weight = cast(nn.Linear, linear).weight
            weight[: 2 * self.width] *= self.gamma
            weight[2 * self.width :] *= 0.5
        if self.offset is not None:
            self.offset.weight.normal_(std=self.width**-0.5)
            self.offset.weight[:, : 2 * self.width] *= self.gamma

    def shared(self, cond_BD: Tensor | None) -> Tensor | None:
        """The map's output that all blocks share, or None when each block has its own."""
        return self.maps[0](F.silu(_given(cond_BD))) if self.offset is not None else None

    def modulate(self, block: int, cond_BD: Tensor | None, shared: Tensor | None) -> list[Branch | None]:
        """(gamma, scale, shift) of the two branches; order gamma1, gamma2, scale1, scale2, shift1, shift2."""
        if shared is not None and self.offset is not None:
            six = shared + self.offset.weight[block]
        else:
            six = self.maps[block](F.silu(_given(cond_BD)))
        parts = six.unflatten(-1, (6, self.width)).unsqueeze(-3).unbind(-2)  # each (B, 1, D)
        return [(parts[0], parts[2], parts[4]), (parts[1], parts[3], parts[5])]

    def enter(self, block: int, branch: int, x: Tensor, how: Branch | None) -> Tensor:
        """Normalised x, scaled and shifted by the condition."""
        _, scale, shift = cast(Branch, how)
        return F.layer_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift

    def leave(self, y: Tensor, how: Branch | None) -> Tensor:
        """The branch's output times gamma."""
        return y * cast(Branch, how)[0]

    def last(self, x: Tensor, cond_BD: Tensor | None) -> Tensor:
        """Norm before the head; here the order is scale, shift."""
        scale, shift = self.final(F.silu(_given(cond_BD))).unsqueeze(-2).chunk(2, dim=-1)
        return F.layer_norm(x, (self.width,), eps=self.eps) * (1 + scale) + shift


def _given(cond_BD: Tensor | None) -> Tensor:
    if cond_BD is None:
        raise ValueError("an adaptive norm needs a condition vector")
    return cond_BD

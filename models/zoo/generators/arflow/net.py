"""Blocks over sequences of noisy images: attention inside an image, a gated recurrence from image to image (ARFlow, arXiv:2501.16085).

Shapes: B rows, S images of a sequence, N tokens of an image, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.norms import AdaLN, Branch

#: Logarithms of gates are divided by this.
SLOW = 16


def hybrid(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs (B, H, S, N, E) and the state (B, H, E, E) after the last image, of queries, keys and values (B, H, S, N, E) and logarithms
    of gates (B, H, S, N) (section 3.3).

    Inside an image attention without a mask; of earlier images a state, which fades by the mean gate of an image and takes up its
    ``k^T v``.  Keys are divided by the root of E, queries are not.
    """
    k = k * q.shape[-1] ** -0.5
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    added, kept, before = k.transpose(-1, -2) @ v, gate.mean(-1).exp(), []
    for i in range(q.shape[2]):
        before.append(state)
        state = state * kept[:, :, i, None, None] + added[:, :, i]
    across = (q * gate.cumsum(-1).exp()[..., None]) @ torch.stack(before, 2)
    return across + (q @ k.transpose(-1, -2)).softmax(-1) @ v, state


class HybridAttention(nn.Module):
    """``hybrid`` of normed queries, keys and values, with gates from inputs and conditions, normed by head and gated once more."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.g, self.out = (nn.Linear(width, width, bias=False) for _ in range(5))
        self.gate = nn.Linear(width, heads, bias=False)

    def forward(self, x_BSND: Tensor, c_BSD: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        width = x_BSND.shape[-1:]
        q, k, v = (
            F.rms_norm(to(x_BSND), width, eps=1e-6).unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)
            for to in (self.q, self.k, self.v)
        )
        gate = F.logsigmoid(self.gate(x_BSND + c_BSD[:, :, None])).permute(0, 3, 1, 2) / SLOW
        y, state = hybrid(q, k, v, gate, state)
        y = F.rms_norm(y, y.shape[-1:], eps=1e-6).permute(0, 2, 3, 1, 4).flatten(3)
        return self.out(F.silu(self.g(x_BSND)) * y), state


class HybridNet(nn.Module):
    """Blocks of hybrid attention and an MLP, all modulated by the condition of each image."""

    def __init__(self, width: int, depth: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm = cast(AdaLN, AdaLN.Config(gamma=0.0).build(width, depth))
        self.attention = nn.ModuleList(HybridAttention(width, heads) for _ in range(depth))
        self.mlp = nn.ModuleList(GELU.Config(ratio=ratio).build(width) for _ in range(depth))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.norm.initialise()

    def forward(self, x_BSND: Tensor, c_BSD: Tensor, states: list[Tensor | None] | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Hidden states after the last norm, and the blocks' states after the last image; given states are those before the first."""
        after: list[Tensor | None] = []
        for i in range(len(self.attention)):
            how = [self._each(cast(Branch, branch)) for branch in self.norm.modulate(i, c_BSD, None)]
            y, state = self.attention[i](self.norm.enter(i, 0, x_BSND, how[0]), c_BSD, states[i] if states else None)
            x_BSND = x_BSND + self.norm.gate(y, how[0])
            x_BSND = x_BSND + self.norm.gate(self.mlp[i](self.norm.enter(i, 1, x_BSND, how[1])), how[1])
            after.append(state)
        return self.norm.last(x_BSND, c_BSD[:, :, None]), after

    @staticmethod
    def _each(how: Branch) -> Branch:
        """The values of an image for each of its tokens."""
        gamma, scale, shift = (v.unsqueeze(2) for v in how)
        return gamma, scale, shift

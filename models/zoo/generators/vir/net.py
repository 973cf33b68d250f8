"""Retention (arXiv:2307.08621): linear attention with exponential decay, in three equal forms.

Shapes: B rows, H heads, S slots, C slots of a chunk, E head width, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.recurrent.branching import tree_states
from tokenloom.models.parts.nets.sequence import Mixer, State
from tokenloom.models.parts.rope import rotate
from tokenloom.models.parts.scan import wide


class Retention(Mixer):
    """Multi-scale retention: each head forgets at its own rate; outputs are normalised by head and gated."""

    trees = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixer.Config, tag="mixer.retention"):
        """``chunk``: longer sequences are worked off chunk by chunk, in linear time; ``gate`` of the output; ``base`` of the rotations."""

        heads: int
        chunk: int = 256
        gate: Literal["swish", "none"] = "swish"
        base: float = 10000.0
        eps: float = 1e-5

    log_decay_H: Tensor
    frequency: Tensor

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if config.heads < 1 or width % config.heads or (width // config.heads) % 2 or config.chunk < 1:
            raise ConfigError(
                f"mixer.heads={config.heads}, mixer.chunk={config.chunk}: heads must cut width={width} evenly, chunk be positive"
            )
        self.heads, self.head_width, self.chunk, self.eps = config.heads, width // config.heads, config.chunk, config.eps
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gate = nn.Linear(width, width, bias=False) if config.gate == "swish" else None
        self.out = nn.Linear(width, width, bias=False)
        # Decays 1 - 2^-5, 1 - 2^-6, … (section 2.2): half-lives of 22, 44, … slots.
        rates = torch.tensor([math.log1p(-(2.0 ** (-5 - head))) for head in range(config.heads)])
        self.register_buffer("log_decay_H", rates, persistent=False)
        frequency = config.base ** -(torch.arange(0, self.head_width, 2).float() / self.head_width)
        self.register_buffer("frequency", frequency, persistent=False)

    def state(self, rows: int, like: Tensor) -> State:
        """The decayed ``sum`` (B, H, E, E) of the outer products of keys and values, in at least float32."""
        return State({"sum": wide(like.new_zeros((rows, self.heads, self.head_width, self.head_width)))})

    def forward(self, x_BSD: Tensor, state: State | None = None) -> Tensor:
        rows, slots, width = x_BSD.shape
        q, k, v = self.qkv(x_BSD).view(rows, slots, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        rotations = self._rotations(torch.arange(slots, device=x_BSD.device)[None] if state is None else state.steps(slots, x_BSD.device))
        q, k = rotate(q, rotations), rotate(k, rotations) / math.sqrt(self.head_width)
        if state is None:
            y = parallel(q, k, v, self.log_decay_H) if slots <= self.chunk else chunkwise(q, k, v, self.log_decay_H, self.chunk)[0]
        elif state.branches is not None:
            outer = wide(k).transpose(1, 2).unsqueeze(-1) * wide(v).transpose(1, 2).unsqueeze(-2)  # (B, S, H, E, E)
            decay = self.log_decay_H.to(outer.dtype).expand(rows, slots, -1)
            sums_BSHEE = tree_states(decay, outer.flatten(3), state.earlier("sum").flatten(3), state.branches).view(outer.shape)
            y = torch.einsum("bhse,bshef->bhsf", wide(q), sums_BSHEE)
            state.advance(sum=sums_BSHEE)
        else:
            if slots == 1 or state.at_B is not None:  # snapshots are of each slot
                y, sums = recurrent(q, k, v, self.log_decay_H, state.tensors["sum"])
                state.advance(sum=torch.stack(sums, dim=1))
            else:
                y, last = chunkwise(q, k, v, self.log_decay_H, self.chunk, state.tensors["sum"])
                state.update(slots, sum=last)
        # The norm of each head makes the missing normaliser of the scores cancel (section 2.2).
        y = F.rms_norm(y, (self.head_width,), eps=self.eps).to(x_BSD.dtype).transpose(1, 2).reshape(rows, slots, width)
        return self.out(y if self.gate is None else F.silu(self.gate(x_BSD)) * y)

    def _rotations(self, step_BS: Tensor) -> Tensor:
        """Rotations (B or 1, 1, S, E/2, 2) of slots at these places (B or 1, S)."""
        angle = step_BS[:, None, :, None] * self.frequency
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


def parallel(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, log_decay_H: Tensor) -> Tensor:
    """``((Q K^T) * D) V`` with ``D_nm = decay^(n - m)`` for n >= m, else 0 (eq. 5)."""
    q, k, v = (wide(t) for t in (q_BHSE, k_BHSE, v_BHSE))
    step = torch.arange(q.shape[2], device=q.device)
    apart = step[:, None] - step
    weight = torch.where(apart >= 0, _power(log_decay_H, apart.clamp(min=0), q), 0.0)
    return (q @ k.transpose(-1, -2) * weight) @ v


def recurrent(q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, log_decay_H: Tensor, sum_BHEE: Tensor) -> tuple[Tensor, list[Tensor]]:
    """``S_n = decay S_{n-1} + K_n^T V_n``, output ``Q_n S_n`` (eq. 6), slot after slot; outputs and all sums."""
    outputs, sums = [], []
    for q, k, v in zip(*(wide(t).unsqueeze(-2).unbind(2) for t in (q_BHSE, k_BHSE, v_BHSE))):
        sum_BHEE = log_decay_H.to(q.dtype).exp()[:, None, None] * sum_BHEE + k.transpose(-1, -2) @ v
        outputs.append(q @ sum_BHEE)
        sums.append(sum_BHEE)
    return torch.cat(outputs, dim=2), sums


def chunkwise(
    q_BHSE: Tensor, k_BHSE: Tensor, v_BHSE: Tensor, log_decay_H: Tensor, chunk: int, sum_BHEE: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Parallel inside chunks, recurrent between them (eq. 7); outputs and the last sum."""
    q_all, k_all, v_all = (wide(t) for t in (q_BHSE, k_BHSE, v_BHSE))
    total = q_all.new_zeros((*q_all.shape[:2], q_all.shape[3], v_all.shape[3])) if sum_BHEE is None else sum_BHEE
    outputs = []
    for q, k, v in zip(*(t.split(chunk, dim=2) for t in (q_all, k_all, v_all))):
        step = torch.arange(q.shape[2], device=q.device)
        into = _power(log_decay_H, step + 1, q)[..., None]  # (H, C, 1): from the last chunk's end to each slot
        left = _power(log_decay_H, q.shape[2] - 1 - step, q)[..., None]  # from each slot to this chunk's end
        outputs.append(parallel(q, k, v, log_decay_H) + (q * into) @ total)
        total = into[:, -1:] * total + (k * left).transpose(-1, -2) @ v
    return torch.cat(outputs, dim=2), total


def _power(log_decay_H: Tensor, exponent: Tensor, like: Tensor) -> Tensor:
    """(H, *exponent's shape) decays to non-negative integer powers: they enter as products, never as quotients."""
    return (log_decay_H.to(like.dtype).view(-1, *[1] * exponent.ndim) * exponent).exp()

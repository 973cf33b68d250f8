"""State spaces with one decay a head (Mamba-2, arXiv:2405.21060) as a mixer: matrix products inside chunks, a fixed state between them.

Shapes: B rows, S slots, D width, E inner channels, H heads of P channels, N states a channel, K taps of the convolution, C slots of a
chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.recurrent.branching import tree_states, tree_windows
from tokenloom.models.parts.nets.sequence import Mixer, State
from tokenloom.models.parts.scan import wide


class Dual(Mixer):
    """The Mamba-2 mixer: one map makes gate, signal, B, C and steps; convolution, recurrence, norm of the gated output."""

    trees = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixer.Config, tag="mixer.mamba2", label="Mamba-2"):
        """``head_width`` P; rates start uniform in ``rates``, steps log-uniform in ``steps``; ``chunk`` slots are worked off at once."""

        states: int = 128
        taps: int = 4
        expand: int = 2
        head_width: int = 64
        chunk: int = 64
        rates: tuple[float, float] = (1.0, 16.0)
        steps: tuple[float, float] = (1e-3, 1e-1)
        eps: float = 1e-5

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        least = min(config.states, config.taps, config.expand, config.head_width, config.chunk)
        if least < 1 or not all(0 < low < high for low, high in (config.rates, config.steps)):
            raise ConfigError(
                f"mixer.states={config.states}, taps={config.taps}, expand={config.expand}, head_width={config.head_width}, "
                f"chunk={config.chunk}, rates={config.rates}, steps={config.steps}: at least 1, and two rising positive numbers"
            )
        self.inner, self.states, self.taps, self.chunk = config.expand * width, config.states, config.taps, config.chunk
        if self.inner % config.head_width:
            raise ConfigError(f"mixer.head_width={config.head_width}: must divide the {self.inner} inner channels")
        self.heads, self.head_width = self.inner // config.head_width, config.head_width
        self.rates, self.steps, mixed = config.rates, config.steps, self.inner + 2 * self.states
        self.enter = nn.Linear(width, self.inner + mixed + self.heads, bias=False)
        self.conv = nn.Conv1d(mixed, mixed, self.taps, groups=mixed)
        # Vectors, so that weight decay leaves them alone: it would pull all decays to one.
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.log_rate = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=config.eps)
        self.out = nn.Linear(self.inner, width, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Rates uniform, steps log-uniform."""
        self.log_rate.copy_(torch.empty_like(self.log_rate).uniform_(*self.rates).log())
        low, high = (math.log(s) for s in self.steps)
        step = torch.empty_like(self.step_bias).uniform_(low, high).exp()
        self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def state(self, rows: int, like: Tensor) -> State:
        """The last K - 1 inputs of the convolution ``tail`` and the states ``h`` (B, H, P, N), in at least float32."""
        tail = torch.zeros((rows, self.conv.in_channels, self.taps - 1), device=like.device, dtype=like.dtype)
        return State({"tail": tail, "h": wide(tail.new_zeros((rows, self.heads, self.head_width, self.states)))})

    def forward(self, x_BSD: Tensor, state: State | None = None) -> Tensor:
        rows, slots, _ = x_BSD.shape
        gate, mixed, step = self.enter(x_BSD).split([self.inner, self.conv.in_channels, self.heads], dim=-1)
        tail = mixed.new_zeros((rows, self.conv.in_channels, self.taps - 1)) if state is None else state.tensors["tail"].to(mixed.dtype)
        by = None if state is None else state.branches
        window = torch.cat([tail, mixed.transpose(1, 2)], dim=2)
        if state is None or by is None:
            mixed = self.conv(window).transpose(1, 2)
        else:
            window_BSEK = tree_windows(mixed, state.earlier("tail").to(mixed.dtype), by)
            mixed = (window_BSEK * self.conv.weight[:, 0]).sum(3) + cast(Tensor, self.conv.bias)
        signal, b, c = F.silu(mixed).split([self.inner, self.states, self.states], dim=-1)
        u_BSHP = signal.unflatten(2, (self.heads, self.head_width))
        delta_BSH = F.softplus(wide(step) + wide(self.step_bias))
        drive, decay = wide(u_BSHP) * delta_BSH.unsqueeze(-1), -delta_BSH * wide(self.log_rate).exp()
        if state is None:
            y, _ = chunkwise(drive, decay, wide(b), wide(c), self.chunk)
        elif by is not None:
            outer = torch.einsum("bshp,bsn->bshpn", drive, wide(b))
            h = tree_states(decay, outer.flatten(3), state.earlier("h").flatten(3), by).view(outer.shape)
            y = torch.einsum("bshpn,bsn->bshp", h, wide(c))
            state.advance(h=h, tail=window_BSEK[..., 1:])
        elif slots == 1 or state.at_B is not None:  # snapshots are of each slot
            y, h_BSHPN = recurrent(drive, decay, wide(b), wide(c), state.tensors["h"])
            # Slot s leaves the K - 1 inputs that end with its own: entries s + 1 … s + K - 1 of the window.
            state.advance(h=h_BSHPN, tail=window[:, :, 1:].unfold(2, self.taps - 1, 1).transpose(1, 2))
        else:
            y, last = chunkwise(drive, decay, wide(b), wide(c), self.chunk, state.tensors["h"])
            state.update(slots, h=last, tail=window[:, :, slots:])
        y = (y + wide(self.skip).unsqueeze(-1) * wide(u_BSHP)).flatten(2).to(x_BSD.dtype)
        return self.out(self.norm(y * F.silu(gate)))


def recurrent(drive_BSHP: Tensor, log_decay_BSH: Tensor, b_BSN: Tensor, c_BSN: Tensor, start_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """``h_t = decay_t h_{t-1} + (d_t u_t) B_t^T`` and ``y_t = h_t C_t``, slot after slot: outputs (B, S, H, P) and all states."""
    outputs, states, h = [], [], start_BHPN
    for drive, log_decay, b, c in zip(*(t.unbind(1) for t in (drive_BSHP, log_decay_BSH, b_BSN, c_BSN))):
        h = log_decay.exp()[..., None, None] * h + drive.unsqueeze(-1) * b[:, None, None]
        outputs.append((h @ c[:, None, :, None]).squeeze(-1))
        states.append(h)
    return torch.stack(outputs, dim=1), torch.stack(states, dim=1)


def chunkwise(
    drive_BSHP: Tensor,
    log_decay_BSH: Tensor,
    b_BSN: Tensor,
    c_BSN: Tensor,
    chunk: int,
    start_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in chunks (section 6): ``y_t = sum_{s <= t} exp(sum of log decays after s up to t) (C_t B_s) d_s u_s`` inside of a chunk,
    the state between chunks; outputs and the last state.  Decays enter as products of numbers up to one, never as quotients."""
    (rows, _, heads, width), states = drive_BSHP.shape, b_BSN.shape[-1]
    h = drive_BSHP.new_zeros((rows, heads, width, states)) if start_BHPN is None else start_BHPN
    outputs = []
    for drive, log_decay, b, c in zip(*(t.split(chunk, dim=1) for t in (drive_BSHP, log_decay_BSH, b_BSN, c_BSN))):
        total_BHC = log_decay.cumsum(1).transpose(1, 2)
        apart = total_BHC.unsqueeze(-1) - total_BHC.unsqueeze(-2)  # (B, H, to, from)
        weight = apart.masked_fill(~torch.ones_like(apart[0, 0], dtype=torch.bool).tril(), -torch.inf).exp()
        inside = (weight * (c @ b.transpose(1, 2)).unsqueeze(1)) @ drive.transpose(1, 2)  # (B, H, C, P)
        before = (c.unsqueeze(1) @ h.transpose(2, 3)) * total_BHC.exp().unsqueeze(-1)
        outputs.append((inside + before).transpose(1, 2))
        left = (total_BHC[..., -1:] - total_BHC).exp().unsqueeze(-1)  # from each slot to the end of the chunk
        h = total_BHC[..., -1].exp()[..., None, None] * h + (drive.transpose(1, 2) * left).transpose(2, 3) @ b.unsqueeze(1)
    return torch.cat(outputs, dim=1), h

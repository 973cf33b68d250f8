"""Selective state spaces (Mamba, arXiv:2312.00752) as a mixer: a parallel scan in training, a fixed state in decoding.

Shapes: B rows, S slots, D width, E inner channels, N states a channel, K taps of the convolution, R rank of the steps.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.recurrent.branching import Branches, tree_states, tree_windows
from tokenloom.models.parts.nets.sequence import Mixer, State
from tokenloom.models.parts.scan import linear_scan, wide


class Selective(Mixer):
    """The Mamba mixer: gate, short causal convolution, and a linear recurrence whose coefficients depend on the input."""

    trees = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Mixer.Config, tag="mixer.mamba", label="Mamba"):
        """``rank`` of the step sizes (0: width / 16); steps start log-uniform in ``steps``."""

        states: int = 16
        taps: int = 4
        expand: int = 2
        rank: int = 0
        steps: tuple[float, float] = (1e-3, 1e-1)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if min(config.states, config.taps, config.expand) < 1 or not 0 < config.steps[0] < config.steps[1]:
            raise ConfigError(
                f"mixer.states={config.states}, mixer.taps={config.taps}, mixer.expand={config.expand}, mixer.steps={config.steps}: "
                "must be at least 1, and steps two rising positive numbers"
            )
        self.inner, self.states, self.taps, self.steps = config.expand * width, config.states, config.taps, config.steps
        self.rank = config.rank or math.ceil(width / 16)
        self.enter = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, self.taps, groups=self.inner)
        self.coefficients = nn.Linear(self.inner, self.rank + 2 * self.states, bias=False)
        self.step = nn.Linear(self.rank, self.inner, bias=False)
        # Vectors, so that weight decay leaves them alone: it would pull all decays to one.
        self.step_bias = nn.Parameter(torch.empty(self.inner))
        self.log_rate = nn.Parameter(torch.empty(self.inner * self.states))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, width, bias=False)

    @torch.no_grad()
    def initialise(self) -> None:
        """Rates 1 … N in each channel (S4D-real), steps log-uniform."""
        self.log_rate.copy_(torch.arange(1, self.states + 1).float().log().repeat(self.inner))
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(s) for s in self.steps)
        step = torch.empty_like(self.step_bias).uniform_(low, high).exp()
        self.step_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def state(self, rows: int, like: Tensor) -> State:
        """The last K - 1 inputs of the convolution ``tail`` (B, E, K - 1) and the states ``h`` (B, E, N), in at least float32."""
        tail = torch.zeros((rows, self.inner, self.taps - 1), device=like.device, dtype=like.dtype)
        return State({"tail": tail, "h": wide(tail.new_zeros((rows, self.inner, self.states)))})

    def forward(self, x_BSD: Tensor, state: State | None = None) -> Tensor:
        signal, gate = self.enter(x_BSD).chunk(2, dim=-1)
        if state is not None and state.branches is not None:
            return self.out(self._tree(signal, state, state.branches) * F.silu(gate))
        if state is None:
            tail = signal.new_zeros((len(signal), self.inner, self.taps - 1))
        else:
            tail = state.tensors["tail"].to(signal.dtype)
        window = torch.cat([tail, signal.transpose(1, 2)], dim=2)
        u_BSE = F.silu(self.conv(window)).transpose(1, 2)
        low, b_BSN, c_BSN = self.coefficients(u_BSE).split([self.rank, self.states, self.states], dim=-1)
        coefficients = Coefficients(self.step(low), self.step_bias, -self.log_rate.view(self.inner, -1).exp(), b_BSN, c_BSN, self.skip)
        if state is None:
            y_BSE = _whole(u_BSE, coefficients)
        else:
            y_BSE, h_BSEN = selective_states(u_BSE, coefficients, state.tensors["h"])
            # Slot s leaves the K - 1 inputs that end with its own: entries s + 1 … s + K - 1 of the window.
            tail_BSEK = window[:, :, 1:].unfold(2, self.taps - 1, 1).transpose(1, 2)
            state.advance(h=h_BSEN, tail=tail_BSEK)
        return self.out(y_BSE * F.silu(gate))

    def _tree(self, signal_BSE: Tensor, state: State, by: Branches) -> Tensor:
        """Outputs (B, S, E) of slots that hang on a tree."""
        window = tree_windows(signal_BSE, state.earlier("tail").to(signal_BSE.dtype), by)
        u = wide(F.silu((window * self.conv.weight[:, 0]).sum(3) + cast(Tensor, self.conv.bias)))
        low, b_BSN, c_BSN = self.coefficients(u.to(signal_BSE.dtype)).split([self.rank, self.states, self.states], dim=-1)
        delta = F.softplus(wide(self.step(low)) + wide(self.step_bias))
        log_decay = delta.unsqueeze(-1) * -wide(self.log_rate).view(self.inner, -1).exp()
        drive = (delta * u).unsqueeze(-1) * wide(b_BSN).unsqueeze(2)
        h = tree_states(log_decay.flatten(2), drive.flatten(2).unsqueeze(-1), state.earlier("h").flatten(2).unsqueeze(-1), by)
        h_BSEN = h.view(drive.shape)
        state.advance(h=h_BSEN, tail=window[..., 1:])
        return (torch.einsum("bsen,bsn->bse", h_BSEN, wide(c_BSN)) + wide(self.skip) * u).to(signal_BSE.dtype)


@dataclass(frozen=True)
class Coefficients:
    """What drives the recurrence: steps before bias and softplus (B, S, E), their bias (E,), rates (E, N), B and C (B, S, N), skip (E,)."""

    step_BSE: Tensor
    bias_E: Tensor
    rate_EN: Tensor
    b_BSN: Tensor
    c_BSN: Tensor
    skip_E: Tensor


def selective_scan(u_BSE: Tensor, by: Coefficients, start_BEN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs (B, S, E) and the last state (B, E, N) of eqs. 2a, 2b of arXiv:2312.00752, at least in float32.

    ``h_t = exp(d_t A) h_{t-1} + d_t B_t u_t`` and ``y_t = C_t h_t + skip u_t`` with ``d_t = softplus(step_t + bias)``: all
    steps in log depth when there are several, one update when there is one.
    """
    y_BSE, h_BSEN = selective_states(u_BSE, by, start_BEN)
    return y_BSE, h_BSEN[:, -1]


def selective_states(u_BSE: Tensor, by: Coefficients, start_BEN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same with the states after all slots, (B, S, E, N)."""
    u, rate, b, c, skip = (wide(t) for t in (u_BSE, by.rate_EN, by.b_BSN, by.c_BSN, by.skip_E))
    delta = F.softplus(wide(by.step_BSE) + wide(by.bias_E))
    decay = torch.exp(delta.unsqueeze(-1) * rate)  # (B, S, E, N)
    drive = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
    if u.shape[1] == 1 and start_BEN is not None:
        h = (decay[:, 0] * start_BEN + drive[:, 0]).unsqueeze(1)
    else:
        h = linear_scan(decay, drive, start_BEN)
    y = torch.einsum("bsen,bsn->bse", h, c) + skip * u
    return y.to(u_BSE.dtype), h


def _whole(u_BSE: Tensor, by: Coefficients) -> Tensor:
    """Outputs of a whole sequence: by the fused kernel where there is one."""
    kernel = _kernel() if u_BSE.is_cuda else None
    return selective_scan(u_BSE, by)[0] if kernel is None else fused(kernel, u_BSE, by)


def fused(kernel: Callable[..., Tensor], u_BSE: Tensor, by: Coefficients) -> Tensor:
    """The same through ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``, which takes channels before steps."""
    u, step, b, c = (t.transpose(1, 2).to(u_BSE.dtype) for t in (u_BSE, by.step_BSE, by.b_BSN, by.c_BSN))
    rate, skip, bias = (t.float() for t in (by.rate_EN, by.skip_E, by.bias_E))
    return kernel(u, step, rate, b, c, D=skip, delta_bias=bias, delta_softplus=True).transpose(1, 2)


@cache
def _kernel() -> Any:
    """The kernel of the package mamba_ssm, None where it is not installed."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        warnings.warn(f"mamba_ssm is installed but cannot be loaded ({error}): the scan runs in plain torch", stacklevel=2)
        return None

"""One phase's parameters as one flat tensor: one reduction, one clip, one fused AdamW, one EMA.

A model of a hundred small tensors costs a hundred small kernels per operation; flat, the loop around the model takes about a
millisecond.  Parameters that decay come first, then those that do not; the gradient buffer ends in a tail of
numbers to log, so that gradients and metrics travel in a single reduction; the tail grows with what a model returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Method
from tokenloom.models.core.settings import OptimizerSettings

_ALIGN = 16  # elements: each parameter starts on a 64-byte boundary, so that matrix kernels run, and round, as on fresh tensors
_METRICS = 64  # metric buffers grow by so many: their length enters the order of a reduction, so one metric more should not change it


def metric_buffer(count: int) -> int:
    """Length of a buffer for ``count`` metrics: the next multiple of 64, at least 64."""
    return _METRICS * max(1, -(-count // _METRICS))


def learning_rate(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``steps``: a function of the step alone."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "linear":
        return settings.lr * (1 - (1 - settings.final) * done)
    if settings.schedule == "cosine":  # Loshchilov and Hutter, arXiv 1608.03983, eq. 5
        return settings.lr * (settings.final + (1 - settings.final) * (1 + math.cos(math.pi * done)) / 2)
    return settings.lr


def ema_decay(decay: float, step: int) -> float:
    """Decay of the EMA after step ``step`` (from 0): short memory at first, so that the random start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


Named = list[tuple[str, nn.Parameter]]


def trainable(model: Method, phase: str) -> tuple[Named, Named, torch.dtype, torch.device]:
    """The parameters of a phase, those with weight decay and those without, and their one type and device.

    Raises:
        ConfigError: a phase without parameters (of a model that has some), or with parameters of several types.
    """
    named = [(n, p) for n, p in model.phase_parameters(phase) if p.requires_grad]
    # A model without any parameters (a fixed codec) is trained like the others: nothing moves.
    if not named and any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"{type(model).__name__}: phase {phase!r} has no trainable parameters")
    kinds = {(p.dtype, p.device) for _, p in named}
    if len(kinds) > 1:
        raise ConfigError(f"{type(model).__name__}: phase {phase!r} mixes parameters of {sorted(map(str, kinds))}")
    dtype, device = kinds.pop() if kinds else (torch.float32, torch.device("cpu"))
    decayed = [(n, p) for n, p in named if not model.no_decay(n, p)]
    return decayed, [(n, p) for n, p in named if model.no_decay(n, p)], dtype, device


class PhaseOptimizer:
    """AdamW over the parameters of one phase.

    Args:
        model: its parameters are moved into the flat tensor (their values and names stay).
        phase: one of ``model.phases``.
        settings: AdamW and its schedule.
        ema: decay of the weights' EMA, 0 for none.

    Raises:
        ConfigError: a phase without parameters (of a model that has some), or with parameters of several types.
    """

    def __init__(self, model: Method, phase: str, settings: OptimizerSettings, ema: float = 0.0) -> None:
        self.phase, self._settings, self._ema = phase, settings, ema
        self._frozen = model.frozen_parameters
        decayed, plain, dtype, device = trainable(model, phase)
        self.spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name, parameter in decayed + plain:
            self.spans[name] = (end, end + parameter.numel())
            end += -(-parameter.numel() // _ALIGN) * _ALIGN
        split = self.spans[plain[0][0]][0] if plain else end
        self.parameters = dict(decayed + plain)
        self.flat = torch.zeros(end, dtype=dtype, device=device)
        for name, parameter in self.parameters.items():
            start, stop = self.spans[name]
            self.flat[start:stop].copy_(parameter.detach().reshape(-1))
            parameter.data = self.flat[start:stop].view(parameter.shape)
        self.average = self.flat.clone() if ema else None
        self._moments = {kind: torch.zeros_like(self.flat) for kind in ("exp_avg", "exp_avg_sq")}
        pieces = [(slice(0, split), settings.weight_decay), (slice(split, end), 0.0)]
        self._pieces = [(part, decay) for part, decay in pieces if self.flat[part].numel()]
        self._count = torch.zeros((), dtype=torch.float32, device=device)

        self._hold(torch.zeros(end + metric_buffer(0), dtype=dtype, device=device))

    def _hold(self, buffer: Tensor) -> None:
        """Make the parts of ``buffer`` the gradients of the parameters, and its end the tail."""
        self.buffer, end = buffer, self.flat.numel()
        self.grad, self.tail = buffer[:end], buffer[end:]
        for name, parameter in self.parameters.items():
            start, stop = self.spans[name]
            parameter.grad = self.grad[start:stop].view(parameter.shape)

    def clear(self) -> None:
        """Zero the gradients and the tail."""
        self.buffer.zero_()

    def fit_tail(self, count: int) -> None:
        """Make the tail hold at least ``count`` numbers; gradients and tail keep their values."""
        if (length := metric_buffer(count)) > self.tail.numel():
            self._hold(torch.cat([self.buffer, self.buffer.new_zeros(length - self.tail.numel())]))

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up gradients and tail over the workers."""
        total(self.buffer)

    def clip(self) -> Tensor:
        """Clip the gradient to the global norm of the settings; its norm before."""
        norm = torch.linalg.vector_norm(self.grad)
        if self._settings.clip:
            self.grad.mul_((self._settings.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, step: int, steps: int) -> float:
        """One AdamW step with the learning rate of this step (parameters that rest stay as they are), then the EMA; the learning rate."""
        lr = learning_rate(self._settings, step, steps)
        kept = [(part, self.flat[part].clone()) for part in self._parts(self._frozen(step / max(1, steps)))]
        self._adamw(lr)
        for part, weight in kept:
            self.flat[part].copy_(weight)
        if self.average is not None:
            self.average.lerp_(self.flat, 1 - ema_decay(self._ema, step))
        return lr

    def _adamw(self, lr: float) -> None:
        """The kernel of ``torch.optim.AdamW(fused=True)`` on the two flat pieces, without its bookkeeping, which costs more than it."""
        first, second = self._settings.betas
        self._count += 1
        for part, decay in self._pieces:
            mean, square = (flat[part] for flat in self._moments.values())
            torch._fused_adamw_(
                [self.flat[part]], [self.grad[part]], [mean], [square], [], [self._count],
                lr=lr, beta1=first, beta2=second, weight_decay=decay, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip

    def _parts(self, beginnings: tuple[str, ...]) -> list[slice]:
        """Where the parameters lie whose names begin so; neighbours are one slice."""
        parts: list[slice] = []
        for name, (start, stop) in self.spans.items() if beginnings else ():
            if not name.startswith(beginnings):
                continue
            if parts and start - parts[-1].stop < _ALIGN:
                parts[-1] = slice(parts[-1].start, stop)
            else:
                parts.append(slice(start, stop))
        return parts

    def swap(self) -> None:
        """Exchange the weights and their EMA (twice gives back the same bits)."""
        if self.average is not None:
            kept = self.flat.clone()
            self.flat.copy_(self.average)
            self.average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments and the EMA by parameter name, as views (the weights themselves are in the model's state)."""
        flats = self._moments if self.average is None else {**self._moments, "ema": self.average}
        return {
            f"{kind}.{self.phase}.{name}": flat[start:stop].view(self.parameters[name].shape)
            for kind, flat in flats.items()
            for name, (start, stop) in self.spans.items()
        }

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take back ``state`` after ``step`` steps; raises ``KeyError`` for a parameter that is missing."""
        for key, view in self.state().items():
            view.copy_(state[key])
        self._count.fill_(step)

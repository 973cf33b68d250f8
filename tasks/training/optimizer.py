"""One phase's parameters as one flat tensor: one reduction, one clip, one fused AdamW, one EMA.

A model of a hundred small tensors costs a hundred small kernels per operation; flat, the loop around the model takes about a
millisecond.  Parameters that decay come first, then those that do not; the gradient buffer ends in a tail of
numbers to log, so that gradients and metrics travel in a single reduction; the tail grows with what a model returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Method
from tokenloom.models.core.settings import OptimizerSettings
from tokenloom.tasks.training.schedule import ema_decay, learning_rate, weight_decay

_ALIGN = 16  # elements: each parameter starts on a 64-byte boundary, so that matrix kernels run, and round, as on fresh tensors
_METRICS = 64  # metric buffers grow by so many: their length enters the order of a reduction, so one metric more should not change it


def metric_buffer(count: int) -> int:
    """Length of a buffer for ``count`` metrics: the next multiple of 64, at least 64."""
    return _METRICS * max(1, -(-count // _METRICS))


Named = list[tuple[str, nn.Parameter]]


def trainable(model: Method, phase: str, exempt: tuple[str, ...] | None = None) -> tuple[Named, Named, torch.dtype, torch.device]:
    """The parameters of a phase, those with weight decay and those without (the model's own or ``exempt``), their one type and device.

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
    free = [_exempt(n, p, exempt) if exempt is not None else model.no_decay(n, p) for n, p in named]
    return [x for x, f in zip(named, free) if not f], [x for x, f in zip(named, free) if f], dtype, device


def _exempt(name: str, parameter: nn.Parameter, exempt: tuple[str, ...]) -> bool:
    return any(parameter.ndim < 2 if part == "vectors" else part in name for part in exempt)


def adam(settings: OptimizerSettings, decayed: list[Any], plain: list[Any], **how: Any) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters with weight decay and those without; ``set_step`` gives a step's values."""
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    groups = [{"params": params, "weight_decay": settings.weight_decay * on, "decays": on} for params, on in ((decayed, 1), (plain, 0))]
    groups = [group for group in groups if group["params"]] or [{"params": [], "decays": 0}]
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, **how)


def set_step(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps: int) -> float:
    """Give the optimizer the learning rate and the weight decay of this step; the learning rate."""
    lr, decay = learning_rate(settings, step, steps), weight_decay(settings, step, steps)
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, decay * group["decays"]
    return lr


class PhaseOptimizer:
    """Adam over the parameters of one phase; it rests, and counts no steps, until the step at which the model's phase begins.

    Args:
        model: its parameters are moved into the flat tensor (their values and names stay).
        phase: one of ``model.phases``.
        settings: Adam and its schedule.
        ema: decay of the weights' EMA, 0 for none.

    Raises:
        ConfigError: a phase without parameters (of a model that has some), or with parameters of several types.
    """

    def __init__(self, model: Method, phase: str, settings: OptimizerSettings, ema: float = 0.0) -> None:
        self.phase, self._settings, self._ema = phase, settings, ema
        self._frozen, self.begins = model.frozen_parameters, model.begins(phase)
        decaying, free, dtype, device = trainable(model, phase, settings.exempt)
        self.spans: dict[str, tuple[int, int]] = {}
        end = 0
        for name, parameter in decaying + free:
            self.spans[name] = (end, end + parameter.numel())
            end += -(-parameter.numel() // _ALIGN) * _ALIGN
        split = self.spans[free[0][0]][0] if free else end
        self.parameters = dict(decaying + free)
        self.flat = torch.zeros(end, dtype=dtype, device=device)
        for name, parameter in self.parameters.items():
            start, stop = self.spans[name]
            self.flat[start:stop].copy_(parameter.detach().reshape(-1))
            parameter.data = self.flat[start:stop].view(parameter.shape)
        self.average = self.flat.clone() if ema else None
        self._moments = {kind: torch.zeros_like(self.flat) for kind in ("exp_avg", "exp_avg_sq")}
        pieces = [(slice(0, split), 1), (slice(split, end), 0)]
        self._pieces = [(part, decays) for part, decays in pieces if self.flat[part].numel()]
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
        """One step of Adam with the learning rate of this step (parameters that rest stay as they are), then the EMA; the learning rate."""
        done, last = step - self.begins, steps - self.begins
        lr = learning_rate(self._settings, done, last)
        kept = [(part, self.flat[part].clone()) for part in self._parts(self._frozen(step / max(1, steps)))]
        self._adam(lr, weight_decay(self._settings, done, last))
        for part, weight in kept:
            self.flat[part].copy_(weight)
        if self.average is not None:
            self.average.lerp_(self.flat, 1 - ema_decay(self._ema, step - self.begins))
        return lr

    def _adam(self, lr: float, weight_decay: float) -> None:
        """The kernel of ``torch.optim.AdamW`` or ``Adam`` with ``fused=True``, without its bookkeeping, which costs more than it."""
        kernel = torch._fused_adamw_ if self._settings.kind == "adamw" else torch._fused_adam_
        first, second = self._settings.betas
        self._count += 1
        for part, decays in self._pieces:
            mean, square = (flat[part] for flat in self._moments.values())
            kernel(
                [self.flat[part]], [self.grad[part]], [mean], [square], [], [self._count], lr=lr, beta1=first, beta2=second,
                weight_decay=weight_decay * decays, eps=self._settings.eps, amsgrad=False, maximize=False,
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
        self._count.fill_(max(0, step - self.begins))


def lengthened(sums: Tensor, count: int) -> Tensor:
    """The sums of metrics, with zeros behind them where ``count`` metrics need more."""
    return torch.nn.functional.pad(sums, (0, max(0, metric_buffer(count) - sums.numel())))

"""All that must survive of a training run: weights, EMA, optimizer, step, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Method
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.training.optimizer import PhaseOptimizer
from tokenloom.tasks.training.parallel import checksum
from tokenloom.tasks.training.schedule import ema_decay


class TrainState:
    """A model with its phases' optimizers after ``step`` steps.

    Args:
        model: on its device and in its precision; its parameters move into the optimizers' flat tensors.
        settings: optimizer, EMA.

    Raises:
        ConfigError: settings of a phase that the model does not have, a parameter that two phases want, or a phase that has none.
    """

    optimizer: Any = PhaseOptimizer

    def __init__(self, model: Method, settings: TrainSettings) -> None:
        if unknown := sorted(settings.phases.keys() - set(model.phases)):
            raise ConfigError(f"train.phases.{unknown[0]}: this method has no such phase; its phases: {', '.join(model.phases)}")
        self.model, self.step = model, 0
        self.losses: Callable[..., dict[str, Tensor]] = model.losses  # in a training step; the model's own where it is whole
        self.phases = [self.optimizer(model, phase, settings.of(phase), settings.ema) for phase in model.phases]
        owned = [name for phase in self.phases for name in phase.parameters]
        if twice := sorted({name for name in owned if owned.count(name) > 1}):
            raise ConfigError(f"{type(model).__name__}: parameters {twice} are in two phases")

        self._decay, self._buffers = settings.ema, model.averaged_buffers() if settings.ema else {}
        self._averages = {name: buffer.clone() for name, buffer in self._buffers.items()}

    def follow(self) -> None:
        """The averages of buffers take in what the step left there, by the same decay as weights."""
        for name, average in self._averages.items():
            average.lerp_(self._buffers[name].to(average), 1 - ema_decay(self._decay, self.step))

    def _swap(self) -> None:
        """Exchange weights and buffers with their averages."""
        for phase in self.phases:
            phase.swap()
        for name, average in self._averages.items():
            kept = self._buffers[name].clone()
            self._buffers[name].copy_(average)
            average.copy_(kept)

    @contextlib.contextmanager
    def only(self, phase: PhaseOptimizer) -> Iterator[None]:
        """Other phases' parameters take no gradient: their part of the graph is not even walked."""
        others = [p for other in self.phases if other is not phase for p in other.parameters.values()]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def exported(self) -> Iterator[None]:
        """The model as it will be saved: EMA weights if there are any, eval mode, no gradients."""
        self._swap()
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train()
            self._swap()

    def checksum(self) -> int:
        """A number that differs between workers whose weights or buffers differ."""
        return checksum([*(phase.flat for phase in self.phases), *self.model.buffers()])

    def passes(self, batch: int, micro: int, workers: int) -> int | None:
        """Into how many pieces every worker cuts its share of a batch; None: each as it likes, of ``micro`` rows."""
        return None

    def weights(self) -> dict[str, Tensor]:
        """The model's weights and buffers by name, as they stand."""
        return self.model.state_dict()

    def tensors(self) -> dict[str, Tensor]:
        """The state by name: ``model.…``, then moments and EMA of each phase."""
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in self.model.state_dict().items():
            # Tied weights appear under two names: safetensors wants separate memory.
            tensors[f"model.{name}"] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
        for phase in self.phases:
            tensors |= phase.state()
        return tensors | self._buffer_averages()

    def _buffer_averages(self) -> dict[str, Tensor]:
        """The averages of buffers, the same on all workers, by their name in the state."""
        return {f"ema.buffers.{name}": average for name, average in self._averages.items()}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take the state after ``step`` steps; raises ``KeyError`` or ``RuntimeError`` when it is another model's."""
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        self._load_weights(weights)
        for phase in self.phases:
            phase.load(tensors, step)
        for name, average in self._averages.items():  # a state of before they were kept has none: they start anew
            average.copy_(tensors.get(f"ema.buffers.{name}", self._buffers[name]))
        self.step = step

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(weights, strict=True)

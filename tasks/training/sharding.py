"""Fully sharded training (FSDP2): every worker keeps its part of weights, gradients, moments and EMA.

``torch.distributed.fsdp.fully_shard`` cuts each parameter along its first dimension; blocks are put together for as long as they
compute.  The numbers are those of the replicated state up to the order of sums, and so are the checkpoints: whole tensors under
the same names, so that a run may go on with or without sharding, and with any number of workers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Method
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.tasks.training.optimizer import adam, metric_buffer, set_step, trainable
from tokenloom.tasks.training.parallel import checksum
from tokenloom.tasks.training.schedule import ema_decay
from tokenloom.tasks.training.train_state import TrainState

_SHARE = 0.005  # of a model's parameters: a smaller part is no unit of its own, it stays with the root


def check_sharded(model: Method, compiled: bool | str) -> None:
    """See that a generator's state can be sharded.

    Raises:
        ConfigError: several phases, parameters without dimensions, ``compile``, or a torch that is too old.
    """
    name = type(model).__name__
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(f"execution.sharding='fsdp': needs torch 2.13 or newer, this is {torch.__version__}; use sharding: ddp")
    if len(model.phases) > 1:
        raise ConfigError(f"execution.sharding='fsdp': {name} trains in the phases {model.phases}, which ddp alone does; use sharding: ddp")
    if compiled:
        raise ConfigError(f"execution.sharding='fsdp' with compile={str(compiled).lower()}: not supported; use one of the two")
    if scalars := [n for n, p in model.named_parameters() if p.ndim == 0]:
        raise ConfigError(f"execution.sharding='fsdp': {name} has parameters without dimensions ({scalars[0]}); use sharding: ddp")


def units(model: nn.Module) -> list[nn.Module]:
    """What is put together and cut again as one: the elements of module lists that are made of parts, no lists (attention, MLP).

    Such elements are called as a whole (``forward``); what is not in one of them stays together for the whole pass.
    """
    least = _SHARE * sum(p.numel() for p in model.parameters())
    found: list[nn.Module] = []
    for parts in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for part in parts:
            inside = [module for module in part.modules() if module is not part]
            composite = inside and not isinstance(part, nn.ModuleList) and not any(isinstance(module, nn.ModuleList) for module in inside)
            if composite and part not in found and sum(p.numel() for p in part.parameters()) >= least:
                found.append(part)
    return found


class _Root(nn.Module):
    """What is sharded as a whole: a pass through it is a pass of the loss.

    A module of its own, because ``losses`` may call the model (its ``forward``), which would end the pass of a root too early.
    """

    def __init__(self, model: Method) -> None:
        super().__init__()
        self.model, self.passed = model, False

    def forward(self, *given: Any) -> dict[str, Tensor]:
        self.passed = True
        return self.model.losses(*given)


def shard(model: Method, device: torch.device, world: int) -> _Root:
    """Cut the parameters of a model over all workers, in place; every worker must hold the same weights.

    Returns:
        What computes ``model.losses`` when it is called; all workers must call it equally often.
    """
    # Said of every block that ends in a reshape; nothing here writes into what a block returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh, root = init_device_mesh(device.type, (world,)), _Root(model)
    for unit in [*units(model), root]:
        fully_shard(unit, mesh=mesh)
    for part in _sharded(root):
        # The loss of a piece is weighed by its share of the global batch already: gradients are added up, not averaged.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    return root


class ShardedOptimizer:
    """``PhaseOptimizer`` (``tasks/training/optimizer.py``) over parameters that are cut over the workers: the same verbs and AdamW."""

    def __init__(self, model: Method, phase: str, settings: OptimizerSettings, ema: float = 0.0) -> None:
        self.phase, self._settings, self._ema = phase, settings, ema
        self._frozen, self.begins = model.frozen_parameters, model.begins(phase)
        decayed, plain, dtype, device = trainable(model, phase, settings.exempt)
        self.parameters = dict(decayed + plain)
        self._numbers = torch.zeros(metric_buffer(0) + 1, dtype=dtype, device=device)  # the tail, and the square of the gradient's norm
        self._adam = adam(settings, [p for _, p in decayed], [p for _, p in plain], foreach=True)
        with torch.no_grad():
            self._average = {name: p.detach().clone() for name, p in self.parameters.items()} if ema else {}
            for parameter in self.parameters.values():
                moments = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
                self._adam.state[parameter] = {"step": torch.zeros((), dtype=torch.float32), **moments}

    @property
    def tail(self) -> Tensor:
        """The numbers to log."""
        return self._numbers[:-1]

    def fit_tail(self, count: int) -> None:
        """Make the tail hold at least ``count`` numbers; it keeps its values."""
        if (length := metric_buffer(count)) > self.tail.numel():
            self._numbers = torch.cat([self.tail, self._numbers.new_zeros(length + 1 - self.tail.numel())])

    def clear(self) -> None:
        """Zero the gradients and the tail."""
        self._numbers.zero_()
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up the tail over the workers; gradients were added up in the backward pass."""
        for shard_ in self._gradients():
            self._numbers[-1] += shard_.square().sum()
        total(self._numbers)

    def clip(self) -> Tensor:
        """Clip the gradient to the global norm of the settings; its norm before."""
        norm = self._numbers[-1].sqrt()
        if self._settings.clip:
            factor = (self._settings.clip / (norm + 1e-6)).clamp(max=1.0)
            for shard_ in self._gradients():
                shard_.mul_(factor)
        return norm

    @torch.no_grad()
    def step(self, step: int, steps: int) -> float:
        """One step of Adam with the learning rate of this step (frozen parameters stay as they are), then the EMA; the learning rate."""
        lr = set_step(self._adam, self._settings, step - self.begins, steps - self.begins)
        frozen = self._frozen(step / max(1, steps))
        kept = {n: _mine(p).clone() for n, p in self.parameters.items() if frozen and n.startswith(frozen)}
        self._adam.step()
        for name, weight in kept.items():
            _mine(self.parameters[name]).copy_(weight)
        for name, average in self._average.items():
            _mine(average).lerp_(_mine(self.parameters[name]), 1 - ema_decay(self._ema, step - self.begins))
        return lr

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their EMA (twice gives back the same bits)."""
        for name, average in self._average.items():
            weight, mean = _mine(self.parameters[name]), _mine(average)
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def shards(self) -> dict[str, Tensor]:
        """AdamW's moments and the EMA by parameter name, cut as the parameters are."""
        found: dict[str, Tensor] = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            found |= {f"{kind}.{self.phase}.{n}": self._adam.state[p][kind] for n, p in self.parameters.items()}
        return found | {f"ema.{self.phase}.{name}": average for name, average in self._average.items()}

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Take back whole tensors after ``step`` steps; raises ``KeyError`` for a parameter that is missing."""
        for key, part in self.shards().items():
            _take(part, state[key], key)
        for parameter in self.parameters.values():
            self._adam.state[parameter]["step"].fill_(max(0, step - self.begins))

    def _gradients(self) -> Iterator[Tensor]:
        for parameter in self.parameters.values():
            assert parameter.grad is not None
            yield _mine(parameter.grad)


class ShardedState(TrainState):
    """The state of a model that is cut over the workers here: what leaves it is whole."""

    optimizer: Any = ShardedOptimizer

    def __init__(self, model: Method, settings: TrainSettings, device: torch.device, world: int) -> None:
        self._root = shard(model, device, world)
        super().__init__(model, settings)
        self.losses = self._root

    @contextlib.contextmanager
    def exported(self) -> Iterator[None]:
        """As it will be saved, whole on every worker, so that one may use it without the others."""
        with super().exported():
            parts = _sharded(self._root)
            for part in parts:
                part.set_reshard_after_forward(False, recurse=False)
                part.unshard()
            try:
                yield
            finally:
                for part in parts:
                    part.reshard()
                    part.set_reshard_after_forward(part is not self._root, recurse=False)
                if self._root.passed:
                    # Passes without gradients, more on one worker than on another, leave traces in the order in which blocks
                    # are fetched for the next backward pass: without this, workers would wait for different blocks.
                    cast(FSDPModule, self._root).reset_iter_state()

    def checksum(self) -> int:
        """A number that differs between workers whose buffers differ."""
        return checksum(self.model.buffers())

    def passes(self, batch: int, micro: int, workers: int) -> int:
        """As many on all workers, since each pass of one is a pass of all; a piece may have a row more than ``micro``."""
        least, most = batch // workers, -(-batch // workers)
        return min(-(-most // micro), least) if micro else 1

    def weights(self) -> dict[str, Tensor]:
        """The model's whole weights and buffers by name; every worker must ask."""
        return {name: _whole(tensor) for name, tensor in self.model.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name; every worker must ask."""
        whole = {f"model.{name}": tensor for name, tensor in self.weights().items()}
        for phase in cast("list[ShardedOptimizer]", self.phases):
            whole |= {key: _whole(part) for key, part in phase.shards().items()}
        return whole | {name: _whole(average) for name, average in self._buffer_averages().items()}

    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = self.model.state_dict()
        if odd := sorted(own.keys() ^ weights.keys()):
            raise KeyError(f"{odd[0]} is in only one of model and checkpoint")
        for name, part in own.items():
            _take(part, weights[name], name)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _mine(tensor: Tensor) -> Tensor:
    """This worker's part, the same memory."""
    return cast(DTensor, tensor.detach()).to_local()


def _whole(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU (gathered, where it is cut)."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().clone()


@torch.no_grad()
def _take(part: Tensor, whole: Tensor, name: str) -> None:
    """Copy this worker's part of a whole tensor; raises ``RuntimeError`` where shapes differ."""
    if part.shape != whole.shape:
        raise RuntimeError(f"{name} has the shape {tuple(whole.shape)}, the model's is {tuple(part.shape)}")
    if isinstance(part, DTensor):
        whole = whole.to(part.device, part.dtype)
        # Everybody has the whole tensor: nothing is sent.
        _mine(part).copy_(distribute_tensor(whole, part.device_mesh, part.placements, src_data_rank=None).to_local())
    else:
        part.detach().copy_(whole)

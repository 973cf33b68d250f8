"""Several workers as one: a group's reductions in a fixed order, and processes without Ray.

The group is whatever ``torch.distributed`` group exists (Ray Train sets one up); alone, every verb is a no-op.
gloo and NCCL add the ranks' numbers in an order that depends on world size and length only, so a run repeats bit by bit.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import StepError


class Group:
    """The workers of one training run.

    Args:
        rank: this worker, 0 is the one that writes.
        world: number of workers; more than one needs an initialised ``torch.distributed`` group of that size.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        if world > 1 and not (distributed.is_initialized() and distributed.get_world_size() == world):
            raise StepError(
                f"{world} workers need a torch.distributed group of that size: start them with tokenloom.tasks.training.parallel.launch"
            )
        self.rank, self.world = rank, world
        nccl = world > 1 and distributed.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this worker writes."""
        return self.rank == 0

    def sum(self, flat: Tensor) -> Tensor:
        """Add up a contiguous tensor over the workers, in place."""
        if self.world > 1:
            distributed.all_reduce(flat)
        return flat

    def from_first(self, number: int) -> int:
        """The first worker's integer, on all."""
        if self.world == 1:
            return number
        value = torch.tensor([number], dtype=torch.int64, device=self._device)
        distributed.broadcast(value, src=0)
        return int(value.item())

    def gather(self, number: int) -> list[int]:
        """Every worker's integer, by rank."""
        if self.world == 1:
            return [number]
        value = torch.zeros(self.world, dtype=torch.int64, device=self._device)
        value[self.rank] = number
        distributed.all_reduce(value)
        return [int(n) for n in value.tolist()]

    def wait(self) -> None:
        """Return when all workers have come here."""
        self.from_first(0)


def device_of(name: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda`` (this process's own accelerator).

    Raises:
        ConfigError: ``cuda`` where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r}: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda': torch finds no accelerator here; use auto or cpu, or install a CUDA build of torch")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def repeatable(threads: int) -> Iterator[None]:
    """Kernels that give the same bits each time: deterministic algorithms and a fixed number of threads."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])


def checksum(tensors: Iterable[Tensor]) -> int:
    """Sum of the tensors' bit patterns: differs where two workers' states differ (almost surely), cheap on any device."""
    value = 0
    for tensor in tensors:
        bits = {4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
        total = int(tensor.detach().contiguous().reshape(-1).view(bits).sum(dtype=torch.int64).item())
        value = (value * 1_000_003 + total) % (1 << 61)
    return value


def _enter(rank: int, world: int, rendezvous: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # these workers share one machine: never leave it
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(minutes=10))
    try:
        function(*args, rank, world)
    finally:
        distributed.destroy_process_group()


def launch(world: int, function: Callable[..., Any], *args: Any, method: str = "spawn") -> None:
    """Call ``function(*args, rank, world)`` in ``world`` processes on this machine, joined by gloo, without Ray.

    ``function`` must be importable.  The first failure ends all processes and is raised.  ``method="fork"`` starts much
    faster, and is safe only in a process that has not used threads or an accelerator yet.
    """
    if world == 1:
        function(*args, 0, 1)
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        given = (world, rendezvous, function, args)
        torch.multiprocessing.start_processes(_enter, given, nprocs=world, start_method=method)

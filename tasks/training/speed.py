"""How fast a training is: items and tokens a second, and the share of the accelerators' peak that is used."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache

import torch

from tokenloom.models.core.build import parameters
from tokenloom.models.core.protocols import Generator, Method


@dataclass(frozen=True)
class Accelerator:
    """One accelerator: memory in bytes, and dense peaks in FLOP/s."""

    name: str
    memory: int
    bfloat16: float
    float32: float

    def peak(self, precision: str) -> float:
        """FLOP/s in a training's precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


#: Vendors' data sheets (SXM forms; float32 without tensor cores).
ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator("H200", 141 * 10**9, 989e12, 67e12),
        Accelerator("H100", 80 * 10**9, 989e12, 67e12),
        Accelerator("A100", 80 * 10**9, 312e12, 19.5e12),
        Accelerator("L40S", 48 * 10**9, 362e12, 91.6e12),
        Accelerator("L4", 24 * 10**9, 121e12, 30.3e12),
    )
}


def processor() -> Accelerator:
    """One core of this machine, whose peak is that of a product of matrices, measured now (a tenth of a second)."""
    size, threads = 768, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, rates = torch.ones(size, size), []
        for _ in range(4):
            began = time.perf_counter()
            a @ a
            rates.append(2 * size**3 / (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Accelerator("CPU", memory, max(rates), max(rates))


@dataclass(frozen=True)
class Execution:
    """How a training runs: its workers, the threads and the precision of each, and what its items are called."""

    workers: int
    threads: int
    precision: str
    noun: str = "items"


def speeds(model: Method, device: torch.device, execution: Execution, rows: float) -> dict[str, float]:
    """Metrics of a training that passes ``rows`` rows of the global batch a second.

    ``mfu`` is the share of the workers' peak in the training's precision that the model's arithmetic takes, by 6 N operations a token
    (Kaplan et al., arXiv:2001.08361, section 2.1); there is none on accelerators whose peak is not known.
    """
    found = {f"{execution.noun}_per_second": rows}
    if isinstance(model, Generator):
        found["tokens_per_second"] = tokens = rows * model.layout.length
        if peak := peak_of(device, execution.precision, execution.threads):
            found["mfu"] = 6 * parameters(model) * tokens / (peak * execution.workers)
    return found


def peak_of(device: torch.device, precision: str, threads: int = 1) -> float | None:
    """FLOP/s of one worker at most: by the data sheet, or as this processor was measured; None where neither is known."""
    if device.type == "cpu":
        return _core().peak(precision) * threads
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((one.peak(precision) for one in ACCELERATORS.values() if one.name in name), None)


@cache
def _core() -> Accelerator:
    return processor()

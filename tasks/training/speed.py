"""How fast a training is: images and tokens a second, and the share of the accelerators' peak that is used."""

from __future__ import annotations

from dataclasses import dataclass

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


def speeds(model: Method, device: torch.device, workers: int, rows: float) -> dict[str, float]:
    """Metrics of a training that passes ``rows`` rows of the global batch a second."""
    found = {"images_per_second": rows}
    if isinstance(model, Generator):
        found["tokens_per_second"] = tokens = rows * model.layout.length
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = next((one.bfloat16 for one in ACCELERATORS.values() if one.name in name), None)
        if peak:  # 6 N FLOP a token: Kaplan et al., arXiv 2001.08361, section 2.1
            found["mfu"] = 6 * parameters(model) * tokens / (peak * workers)
    return found

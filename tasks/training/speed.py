"""How fast a training is: images and tokens a second, and the share of the accelerators' peak that is used."""

from __future__ import annotations

import torch

from tokenloom.models.core.build import parameters
from tokenloom.models.core.protocols import Generator, Method

#: Dense bfloat16 peak of accelerators, FLOP/s (vendors' data sheets): the denominator of MFU.
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}


def speeds(model: Method, device: torch.device, workers: int, rows: float) -> dict[str, float]:
    """Metrics of a training that passes ``rows`` rows of the global batch a second."""
    found = {"images_per_second": rows}
    if isinstance(model, Generator):
        found["tokens_per_second"] = tokens = rows * model.layout.length
        peak = next((f for n, f in PEAK.items() if device.type == "cuda" and n in torch.cuda.get_device_name(device)), None)
        if peak:  # 6 N FLOP a token: Kaplan et al., arXiv 2001.08361, section 2.1
            found["mfu"] = 6 * parameters(model) * tokens / (peak * workers)
    return found

"""The two collectives that parts of a model may use; both do nothing in a single process.

A collective may only be called where every rank calls it equally often: in ``after_step``, never in ``losses``
(ranks may pass their share in different numbers of micro-batches).
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of workers; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all workers as a new tensor without gradient, bit-identical on each of them."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total

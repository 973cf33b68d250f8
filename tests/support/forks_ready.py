"""What a process imports and does once before the tests fork it: everything that takes a second in each of its children otherwise."""

from __future__ import annotations

import torch
import toy

from tokenloom.models.core import registry

torch.set_num_threads(1)
registry.names()
_weight = torch.nn.Parameter(torch.zeros(1))
_weight.grad = torch.zeros(1)
torch.optim.AdamW([_weight], fused=True).step()  # imports torch's compiler

__all__ = ["toy"]

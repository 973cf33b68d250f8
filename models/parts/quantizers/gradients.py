"""How a gradient passes a quantizer: two estimators as values.

Shapes: … any leading dimensions, C channels last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config as configs


@dataclass(frozen=True, kw_only=True)
class Straight(configs.Config, tag="gradient.straight_through"):
    """Straight through: the gradient of the output is that of the input (arXiv:1308.3432, arXiv:1711.00937)."""

    def __call__(self, z: Tensor, q: Tensor) -> Tensor:
        """The value of ``q`` with the gradient of ``z``; (..., C)."""
        return z + (q - z).detach()


@dataclass(frozen=True, kw_only=True)
class Rotation(configs.Config, tag="gradient.rotation"):
    """The rotation trick (arXiv:2410.06424, section 4.2): the input is turned and stretched onto its code by a constant map.

    So the gradient keeps its angle to the code where the straight one would keep its direction.
    """

    def __call__(self, z: Tensor, q: Tensor) -> Tensor:
        """The value of ``q`` with the turned gradient of ``z``; (..., C)."""
        length_z, length_q = (x.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6) for x in (z, q))
        u, v = z.detach() / length_z, q.detach() / length_q
        w = F.normalize(u + v, dim=-1)
        # R z = z - 2 w (w . z) + 2 v (u . z) turns u into v
        turned = z - 2 * (z * w).sum(-1, keepdim=True) * w + 2 * (z * u).sum(-1, keepdim=True) * v
        return turned * (length_q / length_z)


Gradient = Straight | Rotation

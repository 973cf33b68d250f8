"""k-means over features that do not move (DiGIT, arXiv:2410.12490, section 3.3).

The centres start from Lloyd's algorithm on the first step's global batch and follow moving averages of what chooses them from then
on (mini-batch k-means), the same on all ranks.  Shapes: B rows, C channels, H W grid, L = H W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized
from tokenloom.models.parts.quantizers.codebook import EMA, counts, exact
from tokenloom.models.parts.quantizers.vq import VQ


class Clusters(VQ):
    """The id of a position is its nearest centre; nothing flows back to the features."""

    @dataclass(frozen=True, kw_only=True)
    class Config(VQ.Config, tag="quantizer.clusters", label="k-means"):
        """The codebook must follow averages."""

        beta: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            if not isinstance(self.codebook.update, EMA) or self.beta or self.entropy:
                raise ConfigError("quantizer: centres follow averages (codebook.update is EMA) and have no losses (beta, entropy are 0)")

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None, group: int = 0) -> Quantized:
        """Centres in place of features; in training with ``draws`` the centres' statistics take the batch in."""
        with torch.no_grad(), torch.autocast(z_BCHW.device.type, enabled=False):
            z_BLC = self.codebook.placed(exact(z_BCHW).flatten(2).transpose(1, 2))
            ids_BL = self.codebook.nearest(z_BLC.flatten(0, 1)).view(z_BLC.shape[:2])
            if self.training and draws is not None:
                self.codebook.observe([(z_BLC, ids_BL)], draws)
            centre_BCHW = self.lookup(ids_BL).to(z_BLC.dtype)
        usage = counts([ids_BL], self.config.codebook.codes)
        return Quantized(centre_BCHW, ids_BL, {}, {"usage": usage})

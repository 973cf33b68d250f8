"""Vector quantization: one nearest code a position (VQ-VAE, arXiv:1711.00937; l2-normalised codes as in arXiv:2110.04627).

Shapes: B rows, C channels, H W grid, L = H W, N = B L, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import Codebook, Learned, counts, exact
from tokenloom.models.parts.quantizers.gradients import Gradient, Straight


class VQ(Quantizer):
    """One codebook for all positions; with the cosine metric vectors and codes lie on the unit sphere."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.vq", label="VQ"):
        """``beta`` weighs the commitment loss, ``entropy`` the entropy loss of LlamaGen (0 is off), ``diversity`` the mean's part of it.

        The commitment is the squared distance of a vector to its code, or the ``cross_entropy`` of its code among all, by distance.
        """

        codebook: Codebook.Config
        beta: float = 0.25
        entropy: float = 0.0
        gradient: Gradient = Straight()
        commitment: Added[Literal["distance", "cross_entropy"]] = "distance"
        diversity: Added[float] = 1.0

        def __post_init__(self) -> None:
            if self.beta < 0 or self.entropy < 0:
                raise ConfigError(f"quantizer.beta={self.beta}, entropy={self.entropy}: must not be negative")

        @property
        def label(self) -> str:
            return f"{self.words}, {self.codebook.update.label}{', entropy loss' if self.entropy else ''}"

        def channels(self) -> tuple[int, int]:
            return self.codebook.dim, self.codebook.dim

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), vocabulary=self.codebook.codes)

    def __init__(self, config: Config, grid: tuple[int, int], groups: tuple[str, ...] = ("",), weights: tuple[float, ...] = (1.0,)) -> None:
        """``groups`` name the uses of a codebook that several stages share; their vectors count by ``weights``."""
        super().__init__()
        self.config, self.grid = config, grid
        self.codebook = config.codebook.build(groups, weights)

    @property
    def ready(self) -> bool:
        return self.codebook.ready

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None, group: int = 0) -> Quantized:
        """Quantize; in training with ``draws`` the codebook's statistics take the batch in, as that of a ``group``."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_BHWC = self.codebook.placed(exact(z_BCHW).permute(0, 2, 3, 1))
            z_NC = z_BHWC.flatten(0, 2)
            ids_BL = self.codebook.nearest(z_NC).view(len(z_BCHW), -1)
            q_BHWC = self.codebook.placed(F.embedding(ids_BL, self.codebook.weight.to(z_NC.dtype))).view_as(z_BHWC)
            # equation 3 of arXiv:1711.00937
            losses = {"commitment": self.config.beta * self._commitment(z_BHWC, q_BHWC.detach(), ids_BL)}
            if isinstance(self.config.codebook.update, Learned):
                losses["codebook"] = self.config.codebook.update.weight * F.mse_loss(q_BHWC, z_BHWC.detach())
            if self.config.entropy:
                losses["entropy"] = self.config.entropy * self._entropy(z_NC)
            if self.training and draws is not None:
                self.codebook.observe([(z_BHWC.flatten(1, 2), ids_BL)], draws, group)
            straight = self.config.gradient(z_BHWC, q_BHWC)
        usage = counts([ids_BL], self.config.codebook.codes)
        return Quantized(straight.permute(0, 3, 1, 2), ids_BL, losses, {"usage": usage})

    def _commitment(self, z_BHWC: Tensor, q_BHWC: Tensor, ids_BL: Tensor) -> Tensor:
        """What draws vectors to their codes."""
        if self.config.commitment == "distance":
            return F.mse_loss(z_BHWC, q_BHWC)
        z_NC, table_KC = z_BHWC.flatten(0, 2), self.codebook.placed(self.codebook.weight.detach()).to(z_BHWC)
        logits_NK = z_NC @ table_KC.T if self.config.codebook.metric == "cosine" else -torch.cdist(z_NC, table_KC)
        return F.cross_entropy(logits_NK, ids_BL.flatten())

    def _entropy(self, z_NC: Tensor, temperature: float = 0.01) -> Tensor:
        """Mean entropy of a vector's code distribution less the entropy of the mean distribution (of the local rows)."""
        table = self.codebook.placed(self.codebook.weight)
        distance_NK = z_NC.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * z_NC @ table.T
        affinity_NK = -distance_NK / temperature
        p_NK = affinity_NK.softmax(-1)
        each = -(p_NK * (affinity_NK + 1e-5).log_softmax(-1)).sum(-1).mean()
        mean_K = p_NK.mean(0)
        return each + self.config.diversity * (mean_K * (mean_K + 1e-5).log()).sum()

    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L), row-major."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            return self.codebook.nearest(exact(z_BCHW).permute(0, 2, 3, 1).flatten(0, 2)).view(len(z_BCHW), -1)

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """Code vectors (B, C, H, W) of ids."""
        z_BLC = self.codebook.placed(F.embedding(ids_BL, self.codebook.weight))
        return z_BLC.transpose(1, 2).unflatten(2, self.grid)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Codebook update once an optimizer step."""
        return self.codebook.after_step(draws)

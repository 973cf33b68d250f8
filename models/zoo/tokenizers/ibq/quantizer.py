"""IBQ: index backpropagation quantization (arXiv:2412.02692).

The choice is an argmax over dot products, its gradient that of their softmax, so every code learns from every vector.
Shapes: B rows, C channels, H W grid, L = H W, N = B L, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.usage import Usage


class IBQ(Quantizer):
    """One codebook, all of it updated in every step."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.ibq", label="VQ, index backpropagation"):
        """``beta`` weighs the term that draws codes to vectors; ``entropy`` is of the dot products' softmax."""

        codes: int
        dim: int
        beta: float = 0.25
        entropy: Entropy | None = Entropy(weight=0.05)

        def __post_init__(self) -> None:
            if self.codes < 2 or self.dim < 1 or self.beta < 0:
                raise ConfigError(
                    f"quantizer.codes={self.codes}, dim={self.dim}, beta={self.beta}: at least 2 codes, 1 channel, beta not negative"
                )

        def channels(self) -> tuple[int, int]:
            return self.dim, self.dim

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), vocabulary=self.codes)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        # of one length: the dot product then starts as a cosine, and no code outshines the others
        self.codebook = nn.Parameter(F.normalize(torch.randn(config.codes, config.dim), dim=-1) * config.dim**0.5 / 2)
        self.usage = Usage(config.codes)

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """Quantize (algorithm 1); the latents' gradient comes through the softmax alone."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_NC = exact(z_BCHW).permute(0, 2, 3, 1).flatten(0, 2)
            code_KC = self.codebook.to(z_NC.dtype)
            logits_NK = z_NC @ code_KC.T
            ids_N = logits_NK.argmax(-1)
            p_NK = logits_NK.softmax(-1)
            q_NC = F.embedding(ids_N, code_KC)
            # the one-hot choice with the softmax's gradient, times the codebook
            soft_NC = q_NC + (p_NK - p_NK.detach()) @ code_KC.detach()
            losses = {
                "commitment": F.mse_loss(soft_NC, z_NC) + F.mse_loss(z_NC, q_NC.detach()),
                "codebook": self.config.beta * F.mse_loss(q_NC, z_NC.detach()),
            }
            if self.config.entropy is not None:
                losses["entropy"] = self.config.entropy(*self.config.entropy.of_logits(logits_NK))
        usage = self.usage.count([ids_N])
        if self.training and draws is not None:
            self.usage.observe(usage)
        z_BCHW = soft_NC.unflatten(0, (len(z_BCHW), *self.grid)).permute(0, 3, 1, 2)
        return Quantized(z_BCHW, ids_N.view(len(z_BCHW), -1), losses, {"usage": usage})

    @torch.no_grad()
    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Ids (B, L), row-major."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            z_NC = exact(z_BCHW).permute(0, 2, 3, 1).flatten(0, 2)
            return (z_NC @ self.codebook.to(z_NC.dtype).T).argmax(-1).view(len(z_BCHW), -1)

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """Codes (B, C, H, W) of ids."""
        return F.embedding(ids_BL, self.codebook).transpose(1, 2).unflatten(2, self.grid)

    def after_step(self, draws: Draws) -> dict[str, float]:
        """Use and perplexity."""
        return self.usage.after_step()

"""Continuous latents with a Gaussian posterior (VAE, arXiv:1312.6114; the KL tokenizers of arXiv:2112.10752 and MAR, arXiv:2406.11838).

Shapes: B rows, C channels, H W grid, L = H W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Quantized, TokenLayout
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import exact


class Gaussian(Quantizer):
    """The encoder predicts mean and log-variance; training uses a sample, tokens are means times ``scale``."""

    scale: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(Quantizer.Config, tag="quantizer.gaussian", label="Gaussian latents"):
        """``dim`` channels of the latents; ``kl`` weighs the divergence from a standard normal, summed over an image's latents.

        Beside a mean over the values of an image, ``per`` an image's value it is as strong as beside their sum (arXiv:2112.10752,
        equation 25, whose reconstruction is a sum).

        ``scale`` brings the latents near unit variance for whoever models them; None measures it after training (1 until then).
        """

        dim: int
        kl: float = 1e-6
        scale: float | None = None
        per: Added[Literal["image", "value"]] = "image"

        def __post_init__(self) -> None:
            if self.dim < 1 or self.kl < 0 or (self.scale is not None and self.scale <= 0):
                raise ConfigError(f"quantizer.dim={self.dim}, kl={self.kl}, scale={self.scale}: dim and scale positive, kl not negative")

        def channels(self) -> tuple[int, int]:
            return 2 * self.dim, self.dim

        def layout(self, grid: tuple[int, int]) -> TokenLayout:
            return TokenLayout(grids=(grid,), channels=self.dim)

    def __init__(self, config: Config, grid: tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.register_buffer("scale", torch.tensor(config.scale or 1.0), persistent=config.scale is None)

    def posterior(self, moments_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, C, H, W), the latter clamped to [-30, 20]."""
        mean, logvar = exact(moments_BCHW).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    @staticmethod
    def divergence(mean_BCHW: Tensor, logvar_BCHW: Tensor) -> Tensor:
        """Divergence from a standard normal in nats, summed over an image's latents: (B,) (arXiv:1312.6114, appendix B)."""
        return 0.5 * (mean_BCHW.square() + logvar_BCHW.exp() - 1 - logvar_BCHW).flatten(1).sum(1)

    @staticmethod
    def sample(mean_BCHW: Tensor, logvar_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Mean plus standard deviation times noise."""
        return mean_BCHW + torch.exp(0.5 * logvar_BCHW) * noise_BCHW

    def forward(self, z_BCHW: Tensor, draws: Draws | None = None) -> Quantized:
        """A sample of the posterior in training with ``draws``, else its mean."""
        with torch.autocast(z_BCHW.device.type, enabled=False):
            mean, logvar = self.posterior(z_BCHW)
            given = self.sample(mean, logvar, draws.normal(*mean.shape[1:]).to(mean)) if self.training and draws is not None else mean
            losses = {"kl": self.config.kl * self.divergence(mean, logvar).mean()}
        return Quantized(given, self.tokens(mean), losses)

    def given(self, z_BCHW: Tensor, draws: Draws) -> Tensor:
        """A sample of the posterior."""
        mean, logvar = self.posterior(z_BCHW)
        return self.sample(mean, logvar, draws.normal(*mean.shape[1:]).to(mean))

    def weighed(self, losses: dict[str, Tensor], values: int) -> dict[str, Tensor]:
        return losses | {"kl": losses["kl"] / values} if self.config.per == "value" else losses

    def tokens(self, latent_BCHW: Tensor) -> Tensor:
        """Latents as tokens (B, L, C): scaled, row-major."""
        return (latent_BCHW * self.scale.to(latent_BCHW)).flatten(2).transpose(1, 2)

    def encode(self, z_BCHW: Tensor) -> Tensor:
        """Scaled means (B, L, C), row-major."""
        return self.tokens(self.posterior(z_BCHW)[0])

    def lookup(self, data: Tensor) -> Tensor:
        """Latents (B, C, H, W) of such tokens, or of samples of a generator."""
        return (data / self.scale.to(data)).transpose(1, 2).unflatten(2, self.grid)

    @torch.no_grad()
    def finish(self, latents: Iterator[Tensor]) -> None:
        """One over the standard deviation of the means of all channels, unless the scale is given."""
        if self.config.scale is not None:
            return
        sums = torch.zeros(3, dtype=torch.float64, device=self.scale.device)  # count, sum, sum of squares
        for moments_BCHW in latents:
            mean = self.posterior(moments_BCHW)[0].double()
            sums += torch.stack([sums.new_tensor(float(mean.numel())), mean.sum(), mean.square().sum()])
        if float(sums[0]) > 1:
            variance = sums[2] / sums[0] - (sums[1] / sums[0]).square()
            self.scale.copy_(variance.clamp_min(1e-12).rsqrt())

"""Objectives of autoencoders with Gaussian latents in place of the bound: what they keep of it, and how they treat all posteriors together.

Shapes: B rows, Z numbers of a latent.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.zoo.densities.iwae.module import IWAE, log_logistic


class Objective(configs.Config):
    """What is subtracted from the log-likelihood of a reconstruction, summed over a row's values."""

    #: How often the reconstruction counts.
    times: float = 1.0

    @abstractmethod
    def penalty(self, z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor, prior_BZ: Tensor) -> Tensor:
        """(B,) or () nats, of latents from each row's posterior, whose mean and log-deviation are given, and as many from the prior."""


def divergence(mean_BZ: Tensor, log_std_BZ: Tensor) -> Tensor:
    """(B,) KL(q(z | x) || p(z))."""
    return 0.5 * (mean_BZ.square() + (2 * log_std_BZ).exp() - 1 - 2 * log_std_BZ).sum(1)


def discrepancy(x_BZ: Tensor, y_BZ: Tensor) -> Tensor:
    """Maximum mean discrepancy squared of two samples, by a Gaussian kernel as broad as their distances are (biased, not negative)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-(a[:, None] - b).square().mean(-1)).exp().mean()

    return kernel(x_BZ, x_BZ) + kernel(y_BZ, y_BZ) - 2 * kernel(x_BZ, y_BZ)


@dataclass(frozen=True, kw_only=True)
class Information(Objective, tag="vae.information", label="InfoVAE"):
    """``(1 - alpha) KL(q(z | x) || p) + (alpha + weight - 1) D(q || p)``, D between all latents and the prior (arXiv:1706.02262, eq. 6)."""

    alpha: float = 0.0
    weight: float = 1000.0

    def __post_init__(self) -> None:
        if self.alpha > 1 or self.alpha + self.weight < 1:
            raise ConfigError(f"alpha={self.alpha}, weight={self.weight}: alpha at most 1, and both together at least 1")

    def penalty(self, z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor, prior_BZ: Tensor) -> Tensor:
        each = (1 - self.alpha) * divergence(mean_BZ, log_std_BZ)
        return each + (self.alpha + self.weight - 1) * discrepancy(z_BZ, prior_BZ)


@dataclass(frozen=True, kw_only=True)
class Reconstructions(Objective, tag="vae.reconstructions", label="AutoGen"):
    """The bound on the data's likelihood and that of ``more`` perfect reconstructions: those count 1 + ``more`` times (arXiv:1806.04480,
    equation 8)."""

    more: float = 1.0

    @property
    def times(self) -> float:  # type: ignore[override]
        """How often the reconstruction counts."""
        return 1 + self.more

    def penalty(self, z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor, prior_BZ: Tensor) -> Tensor:
        return divergence(mean_BZ, log_std_BZ)


@dataclass(frozen=True, kw_only=True)
class DensityGap(Objective, tag="vae.density_gap", label="DG-VAE"):
    """``log q(z) - log p(z)`` of each latent, q being the mean of all rows' posteriors: of whole latents, or of each number by itself
    (arXiv:2211.00321, section 4)."""

    of: Literal["latents", "numbers"] = "numbers"

    def penalty(self, z_BZ: Tensor, mean_BZ: Tensor, log_std_BZ: Tensor, prior_BZ: Tensor) -> Tensor:
        # The constants of both Gaussians cancel.
        posterior_BBZ = -0.5 * ((z_BZ[:, None] - mean_BZ) * (-log_std_BZ).exp()).square() - log_std_BZ
        prior_BZ = -0.5 * z_BZ.square()
        if self.of == "latents":
            return posterior_BBZ.sum(-1).logsumexp(1) - math.log(len(z_BZ)) - prior_BZ.sum(1)
        return (posterior_BBZ.logsumexp(1) - math.log(len(z_BZ)) - prior_BZ).sum(1)


class ObjectiveVAE(IWAE):
    """The autoencoder of ``IWAE`` trained on another objective; likelihoods are its importance weighted bound."""

    @dataclass(frozen=True, kw_only=True)
    class Config(IWAE.Config, tag="model.objective_vae"):
        """``trained``: the objective."""

        trained: Objective

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "MLP", "head": "discretised logistic", "objective": self.trained.label}

        def build(self, *, signal: SignalSpec, **given: Any) -> ObjectiveVAE:
            """The density of signals of this shape."""
            return ObjectiveVAE(self, signal)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: the negative objective in nats a value; ``elbo``: the negative bound of one latent, for comparison."""
        signal, own = self.signal_of(batch), self.config
        assert isinstance(own, ObjectiveVAE.Config)
        mean, log_std = self.encoder(signal.flatten(1)).chunk(2, dim=-1)
        log_std = log_std.clamp(-7, 7)
        noise, prior = (draws.normal(own.latent).to(signal) for _ in range(2))
        z = mean + log_std.exp() * noise
        values, log_scale = self.decoder(z).chunk(2, dim=-1)
        likelihood = log_logistic(signal.flatten(1), values, log_scale).sum(-1)
        count = math.prod(self.shape)
        loss = (own.trained.penalty(z, mean, log_std, prior) - own.trained.times * likelihood).mean() / count
        elbo = (divergence(mean, log_std) - likelihood).detach().mean() / count
        return {"loss": loss, "elbo": elbo, "bits_per_dimension": elbo / math.log(2)}

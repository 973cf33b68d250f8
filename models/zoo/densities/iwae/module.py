"""An autoencoder with Gaussian latents, trained on the importance weighted bound.

Shapes: B rows, K latents of a row, Z numbers of a latent, C channels, H W image, N = C H W values of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Density
from tokenloom.models.core.signals import SignalSpec

#: Values of a pixel: -1 + 2 v / 255 for v from 0 to 255.
LEVELS = 256


class IWAE(Density):
    """``log p(x) >= L_k = E log 1/k sum_i p(x, z_i) / q(z_i | x)``, with k latents from q (arXiv:1509.00519, equation 8)."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.iwae"):
        """``latent`` numbers, ``depth`` hidden layers of ``width`` in encoder and decoder; ``samples`` latents of a row in training and
        ``judged`` where a likelihood is measured.
        """

        latent: int
        width: int
        depth: int = 2
        samples: int = 50
        judged: int = 100

        def __post_init__(self) -> None:
            for name in ("latent", "width", "depth", "samples", "judged"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")

        @property
        def axis_labels(self) -> dict[str, str]:
            return {"net": "MLP", "head": "discretised logistic", "objective": "importance weighted bound"}

    def __init__(self, config: Config, signal: SignalSpec) -> None:
        super().__init__()
        self.config, self.shape = config, (signal.channels, *signal.shape)
        count = math.prod(self.shape)
        self.encoder = _mlp(count, config.width, config.depth, 2 * config.latent)
        self.decoder = _mlp(config.latent, config.width, config.depth, 2 * count)
        with torch.no_grad():  # pixels start as broad as their range
            cast(nn.Linear, self.decoder[-1]).bias[count:] = math.log(0.25)

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        """``loss``: the negative bound in nats a value, with the config's ``samples``; ``elbo`` is that of one latent, for comparison."""
        signal = self.signal_of(batch)
        logw_BK = self.log_weights(signal, self._noise(signal, draws, self.config.samples))
        count = math.prod(self.shape)
        loss = -_bound(logw_BK).mean() / count
        return {
            "loss": loss,
            "bits_per_dimension": loss.detach() / math.log(2),
            "elbo": -logw_BK.detach().mean() / count,
        }

    def log_prob(self, batch: Batch, draws: Draws, samples: int | None = None) -> Tensor:
        """(B,) L_k in nats, a lower bound in expectation, with ``samples`` latents (the config's ``judged``), 16 at a time."""
        signal, left, parts = self.signal_of(batch), samples or self.config.judged, []
        while left > 0:
            parts.append(self.log_weights(signal, self._noise(signal, draws, min(16, left))))
            left -= 16
        return _bound(torch.cat(parts, dim=1))

    def log_weights(self, signal: Tensor, noise_BKZ: Tensor) -> Tensor:
        """(B, K) of log p(x | z) + log p(z) - log q(z | x), z being mean + deviation * noise (section 3)."""
        mean_BZ, log_std_BZ = self.encoder(signal.flatten(1)).chunk(2, dim=-1)
        log_std_BZ = log_std_BZ.clamp(-7, 7)
        z_BKZ = mean_BZ[:, None] + log_std_BZ.exp()[:, None] * noise_BKZ
        # The constants of both Gaussians cancel.
        prior_BK = -0.5 * z_BKZ.square().sum(-1)
        posterior_BK = (-0.5 * noise_BKZ.square()).sum(-1) - log_std_BZ.sum(-1)[:, None]
        mean_BKN, log_scale_BKN = self.decoder(z_BKZ).chunk(2, dim=-1)
        return log_logistic(signal.flatten(1)[:, None], mean_BKN, log_scale_BKN).sum(-1) + prior_BK - posterior_BK

    @torch.no_grad()
    def sample(self, conditions: Conditions | None, draws: SampleDraws) -> Tensor:
        """One signal (B, C, H, W) in [-1, 1] for each of the draws' samples: z from the prior, then every value by itself."""
        weight = cast(nn.Linear, self.decoder[-1]).weight
        z_BZ = draws.normal("latent", 0, self.config.latent).to(weight)
        mean_BN, log_scale_BN = self.decoder(z_BZ).chunk(2, dim=-1)
        u_BN = draws.uniform("value", 0, mean_BN.shape[1]).to(weight).clamp(1e-6, 1 - 1e-6)
        value_BN = mean_BN + log_scale_BN.clamp_min(-7).exp() * u_BN.logit()
        level_BN = ((value_BN + 1) * (LEVELS - 1) / 2).round().clamp(0, LEVELS - 1)
        return (level_BN * 2 / (LEVELS - 1) - 1).view(-1, *self.shape)

    def _noise(self, signal: Tensor, draws: Draws, samples: int) -> Tensor:
        return draws.normal(samples, self.config.latent).to(signal)


def log_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of values in [-1, 1] on 256 levels, each the mass of a logistic between its neighbours' midpoints; the outermost
    levels take the tails (arXiv:1701.05517, equation 2).
    """
    inverse, half = torch.exp(-log_scale.clamp_min(-7)), 1 / (LEVELS - 1)
    above, below = (x - mean + half) * inverse, (x - mean - half) * inverse
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), s being the logistic function: exact in the tails too.
    inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-2 * half * inverse))
    lowest, highest = x < -1 + half, x > 1 - half
    return torch.where(lowest, F.logsigmoid(above), torch.where(highest, F.logsigmoid(-below), inside))


def _bound(logw_BK: Tensor) -> Tensor:
    """(B,) log of the mean weight; its gradient is that of the normalised weights (equation 13)."""
    return logw_BK.logsumexp(dim=1) - math.log(logw_BK.shape[1])


def _mlp(inside: int, width: int, depth: int, outside: int) -> nn.Sequential:
    sizes = [inside, *[width] * depth]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, outside))

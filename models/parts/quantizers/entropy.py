"""The entropy loss of quantizers: each vector sure of its code, all codes used.

Shapes: N vectors, K codes, D bits.

L = weight (confidence mean_n H(p_n) - diversity H(mean_n p_n)) with p_n(c) ~ exp(-|z_n - c|^2 / temperature) (MAGVIT-v2,
arXiv:2310.05737, equation 5).
The second entropy is that of the rows at hand: a loss is formed before workers meet, so with several workers, or micro-batches, it is
the mean of the shares' entropies, a lower bound of the whole batch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError


@dataclass(frozen=True, kw_only=True)
class Entropy(configs.Config, tag="loss.entropy"):
    """``floor`` keeps the logarithm of the mean distribution finite: 1e-5 added to it, or the least value.

    Of codes that are bits at most ``span`` bits form one distribution; the entropies of several are added, which bounds the entropy of
    all from above (token factorisation of MAGVIT-v2; bit by bit, ``span`` 1, as in BSQ, arXiv:2406.07548, equation 8).
    ``sums`` over bits need no table of codes; over codes they round as released code does, with memory N 2^D.
    """

    weight: float = 0.1
    diversity: float = 1.0
    temperature: float = 0.01
    floor: Literal["added", "least"] = "added"
    span: int = 18
    sums: Added[Literal["bits", "codes"]] = "bits"
    confidence: Added[float] = 1.0

    def __post_init__(self) -> None:
        if min(self.weight, self.diversity, self.confidence) < 0 or self.temperature <= 0:
            raise ConfigError(
                f"entropy.weight={self.weight}, diversity={self.diversity}, confidence={self.confidence}, temperature={self.temperature}: "
                "weights must not be negative, temperature positive"
            )
        if not 1 <= self.span <= 20:
            raise ConfigError(f"entropy.span={self.span}: from 1 to 20 bits")

    def __call__(self, each: Tensor, mean: Tensor) -> Tensor:
        """The weighted loss of the two entropies, a scalar."""
        return self.weight * (self.confidence * each - self.diversity * mean)

    def of_mean(self, p: Tensor) -> Tensor:
        """Entropy in nats of one distribution, of any shape."""
        return -(p * self._floored(p).log()).sum()

    def _floored(self, p: Tensor) -> Tensor:
        return p + 1e-5 if self.floor == "added" else p.clamp_min(1e-5)

    def of_logits(self, logits_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of each vector's distribution, and entropy of their mean; the temperature divides the logits."""
        return self._of_scaled(logits_NK / self.temperature)

    def _of_scaled(self, logits_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The same of logits that the temperature has divided; what keeps the mean's logarithm finite stands in those of vectors too."""
        p_NK = logits_NK.softmax(-1)
        log_NK = (logits_NK + 1e-5).log_softmax(-1) if self.floor == "added" else self._floored(p_NK).log()
        return -(p_NK * log_NK).sum(-1).mean(), self.of_mean(p_NK.mean(0))

    def of_bits(self, z_ND: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """As ``of_logits`` for the codes {-scale, scale}^D, without a table of them unless ``sums`` are over codes.

        The bits of one vector are independent, so its entropy is a sum over bits; the mean over vectors of a product of two halves'
        distributions is one matrix product, with memory N 2^(span / 2) + 2^span.
        """
        if self.sums == "codes":
            return self._of_scaled(2 * (z_ND @ ((2 * _values(z_ND) - 1) * scale).T) / self.temperature)
        logit_ND = 4 * scale * z_ND / self.temperature  # log p(+) - log p(-)
        log_p, log_q = F.logsigmoid(logit_ND), F.logsigmoid(-logit_ND)
        each = -(log_p.exp() * log_p + log_q.exp() * log_q).sum(-1).mean()
        spans = range(0, z_ND.shape[1], self.span)
        return each, torch.stack([self.of_mean(joint_mean(logit_ND[:, i : i + self.span])) for i in spans]).sum()


def joint_mean(logit_ND: Tensor) -> Tensor:
    """Mean over N of the joint distribution of D independent bits with these log-odds: a matrix of 2^D entries in all."""
    half = logit_ND.shape[1] // 2
    p, q = _joint(logit_ND[:, :half]), _joint(logit_ND[:, half:])
    return p.T @ q / len(logit_ND)


def _joint(logit_ND: Tensor) -> Tensor:
    """The distribution over the 2^D values of D bits, (N, 2^D); for D = 0 it is 1."""
    return (logit_ND @ _values(logit_ND).T).softmax(-1)


def _values(like_ND: Tensor) -> Tensor:
    """The 2^D values of D bits, the first one lowest: (2^D, D) of 0 and 1."""
    d = like_ND.shape[1]
    return ((torch.arange(2**d, device=like_ND.device)[:, None] >> torch.arange(d, device=like_ND.device)) & 1).to(like_ND)

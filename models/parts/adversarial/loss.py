"""The adversarial loss of a tokenizer: who judges, by which loss, how strongly, and what keeps the judge from winning.

Shapes: B rows, C channels, H W image.  Every loss is a mean over the batch's rows, so shares of a batch add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.limits import Range
from tokenloom.models.parts.adversarial.augment import DiffAug
from tokenloom.models.parts.adversarial.base import Discriminator
from tokenloom.models.parts.adversarial.patch import PatchDiscriminator
from tokenloom.models.parts.collectives import all_reduce_sum


@dataclass(frozen=True, kw_only=True)
class LeCam(configs.Config, tag="loss.lecam"):
    """Real and made logits stay near moving averages of the other kind (arXiv:2104.03310, equation 4)."""

    weight: float = 0.001
    decay: float = 0.999

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.decay < 1:
            raise ConfigError(f"lecam.weight={self.weight}, decay={self.decay}: weight not negative, decay in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class R1(configs.Config, tag="loss.r1"):
    """gamma / 2 times the squared gradient of the logits of real images, ``every`` steps that many times (arXiv:1801.04406, equation 9)."""

    gamma: float = 10.0
    every: int = 16

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.every < 1:
            raise ConfigError(f"r1.gamma={self.gamma}, every={self.every}: gamma not negative, every at least 1")


class Adversarial(nn.Module):
    """A discriminator and its losses; the generator's weight is adapted to the reconstruction loss (arXiv:2012.09841, equation 7).

    The adaptive weight compares the gradients of the two losses at the decoder's last layer.  The gradients of a step are summed
    over micro-batches and workers in ``after_step`` and weigh the *next* step, so the weight does not depend on how a batch is split.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="loss.adversarial"):
        """Both sides are off until optimizer step ``start``; ``adaptive`` multiplies ``weight`` by the ratio of gradients.

        Then ``weight`` is the share of the adversarial gradient in that of the reconstruction; it counts as at most ``ceiling``, so
        that the discriminator never takes over.  ``loss`` is the discriminator's, ``generator`` the other side's: less the logit, or
        the cross-entropy of taking made images for real ones (non-saturating, arXiv:1406.2661).
        """

        limits: ClassVar = {"start": Range(0, 1 << 31)}

        weight: float = 0.5
        start: int = 0
        balance: Literal["adaptive", "constant"] = "adaptive"
        ceiling: float = 1.0
        discriminator: Discriminator = PatchDiscriminator.Config()
        loss: Added[Literal["hinge", "vanilla"]] = "hinge"
        generator: Added[Literal["logit", "non_saturating"]] = "logit"
        lecam: Added[LeCam | None] = None
        r1: Added[R1 | None] = None
        augment: Added[DiffAug | None] = None

        def __post_init__(self) -> None:
            if min(self.weight, self.start, self.ceiling) < 0:
                raise ConfigError(f"adversarial.weight={self.weight}, start={self.start}, ceiling={self.ceiling}: must not be negative")

    ratio: Tensor
    averages: Tensor
    _gradients: Tensor
    _logits: Tensor

    def __init__(self, config: Config, channels: int, last: torch.Size) -> None:
        super().__init__()
        self.config = config
        self.discriminator = config.discriminator.build(channels)
        self.register_buffer("ratio", torch.ones(()) if config.balance == "constant" else torch.zeros(()))
        self.register_buffer("_gradients", torch.zeros(2, *last), persistent=False)
        if config.lecam is not None:
            self.register_buffer("averages", torch.zeros(2))  # of real logits and of made ones
            self.register_buffer("_logits", torch.zeros(2), persistent=False)

    def on(self, step: int) -> float:
        """1 from the start step, else 0: a factor, so that every parameter has a gradient at any step."""
        return float(step >= self.config.start)

    def _seen(self, image_BCHW: Tensor, draws: Draws | None) -> Tensor:
        augment = self.config.augment
        return image_BCHW if augment is None or draws is None else augment(image_BCHW, draws.fork("augment"))

    def generator_loss(
        self, image_BCHW: Tensor, reconstruction: Tensor, last: Tensor, step: int, rows: int, total: int, draws: Draws | None = None
    ) -> Tensor:
        """The decoder's loss, weighted; notes the gradients of ``rows`` of ``total`` rows for the next step's weight."""
        # detached: this loss leaves no gradient in the discriminator's parameters
        frozen = {n: p.detach() for n, p in self.discriminator.named_parameters()}
        logits = torch.func.functional_call(self.discriminator, frozen, (self._seen(image_BCHW, draws),))
        loss = -logits.mean() if self.config.generator == "logit" else F.softplus(-logits).mean()
        if self.training and self.config.balance == "adaptive" and torch.is_grad_enabled():
            pair = [torch.autograd.grad(part, last, retain_graph=True)[0] for part in (reconstruction, loss)]
            self._gradients += torch.stack(pair).to(self._gradients) * (rows / total)
        config = self.config
        weight = min(config.weight, config.ceiling) if config.balance == "adaptive" else config.weight
        return weight * self.on(step) * self.ratio * loss

    def idle(self) -> dict[str, Tensor]:
        """The discriminator's losses while it is off, at no cost: zero, with a gradient of zero for each of its parameters."""
        zero = torch.stack([p.sum() for p in self.discriminator.parameters()]).sum() * 0.0
        return {"loss": zero, "discriminator": zero.detach()}

    def discriminator_loss(self, real_BCHW: Tensor, fake_BCHW: Tensor, step: int, draws: Draws | None = None) -> Tensor:
        """Hinge (arXiv:1705.02894) or cross-entropy, each side counting half, and the penalties."""
        punished = self.config.r1 is not None and step % self.config.r1.every == 0
        seen = self._seen(real_BCHW, draws).detach().requires_grad_(punished)
        real, fake = self.discriminator(seen), self.discriminator(self._seen(fake_BCHW.detach(), draws))
        if self.config.loss == "hinge":
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        else:
            loss = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
        if (lecam := self.config.lecam) is not None:
            average_real, average_fake = self.averages
            apart = F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()
            loss = loss + lecam.weight * apart
            if self.training:
                share = 1.0 if draws is None else draws.rows / draws.total
                self._logits += torch.stack([real.detach().mean(), fake.detach().mean()]).to(self._logits) * share
        if punished and self.config.r1 is not None:
            (gradient,) = torch.autograd.grad(real.flatten(1).mean(1).sum(), seen, create_graph=True)
            # every so many steps, and so many times as strong
            loss = loss + self.config.r1.every * self.config.r1.gamma / 2 * gradient.square().flatten(1).sum(1).mean()
        return self.on(step) * loss

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """The next step's adaptive weight and averages of logits, from the global batch."""
        if self.config.lecam is not None:
            mean = all_reduce_sum(self._logits)
            if bool(mean.any()):  # a step without the discriminator leaves no logits
                self.averages.lerp_(mean, 1 - self.config.lecam.decay)
            self._logits.zero_()
        if self.config.balance == "adaptive":
            reconstruction, loss = all_reduce_sum(self._gradients).flatten(1).norm(dim=1)
            self.ratio.copy_((reconstruction / (loss + 1e-4)).clamp(0, 1e4))
            self._gradients.zero_()
        return {"adversarial_ratio": float(self.ratio)}

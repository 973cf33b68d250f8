"""Losses of a tokenizer's reconstruction: pixels, perceptual (LPIPS), adversarial.

Shapes: B rows, C channels, H W image.  Every loss is a mean over the batch's rows, so shares of a batch add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.collectives import all_reduce_sum
from tokenloom.models.parts.nets.discriminator import PatchDiscriminator


@dataclass(frozen=True, kw_only=True)
class Pixels(configs.Config, tag="loss.pixels"):
    """Mean absolute (l1) or squared (l2) difference of the pixels."""

    norm: Literal["l1", "l2"] = "l1"
    weight: float = 1.0

    def __call__(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The weighted loss, a scalar."""
        return self.weight * (F.l1_loss if self.norm == "l1" else F.mse_loss)(image_BCHW, target_BCHW)


class Perceptual(nn.Module):
    """LPIPS on VGG-16 features (arXiv:1801.03924, equation 1), frozen.

    The weights are the ``lpips`` package's state dict of ``LPIPS(net="vgg")`` as safetensors: ``net.slice1.0.weight`` …
    and ``lin0.model.1.weight`` …
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="loss.perceptual"):
        """``weights`` is the path of the safetensors file."""

        weights: str
        weight: float = 1.0

    #: Convolutions of VGG-16 by slice: index in ``features``; a slice ends where a feature is taken.
    SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def __init__(self, config: Config) -> None:
        """The frozen network.

        Raises:
            ConfigError: the file is missing or does not hold this network.
        """
        super().__init__()
        from safetensors.torch import load_file

        if not Path(config.weights).is_file():
            raise ConfigError(f"perceptual.weights={config.weights!r}: no such file; give LPIPS-VGG weights or leave perceptual off")
        state = load_file(config.weights)
        try:
            for s, indices in enumerate(self.SLICES):
                for i in indices:
                    for kind in ("weight", "bias"):
                        self.register_buffer(f"conv{i}_{kind}", state[f"net.slice{s + 1}.{i}.{kind}"], persistent=False)
                self.register_buffer(f"linear{s}", state[f"lin{s}.model.1.weight"], persistent=False)
        except KeyError as error:
            raise ConfigError(f"perceptual.weights={config.weights!r}: not LPIPS-VGG weights, {error} is missing") from None
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        h = (x_BCHW.expand(-1, 3, -1, -1) - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for s, indices in enumerate(self.SLICES):
            h = F.max_pool2d(h, 2) if s else h
            for i in indices:
                h = F.relu(F.conv2d(h, self.get_buffer(f"conv{i}_weight"), self.get_buffer(f"conv{i}_bias"), padding=1))
            features.append(h * torch.rsqrt(h.square().sum(1, keepdim=True) + 1e-10))
        return features

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Mean distance of images in [-1, 1] of 1 or 3 channels and at least 16 pixels, a scalar."""
        pairs = zip(self._features(image_BCHW), self._features(target_BCHW))
        distances = [F.conv2d((a - b).square(), self.get_buffer(f"linear{s}")).mean() for s, (a, b) in enumerate(pairs)]
        return torch.stack(distances).sum()


class Adversarial(nn.Module):
    """Hinge loss of a patch discriminator, its weight adapted to the reconstruction loss (arXiv:2012.09841, equation 7).

    The adaptive weight compares the gradients of the two losses at the decoder's last layer.  The gradients of a step are summed
    over micro-batches and workers in ``after_step`` and weigh the *next* step, so the weight does not depend on how a batch is split.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="loss.adversarial"):
        """Both sides are off until optimizer step ``start``; ``adaptive`` multiplies ``weight`` by the ratio of gradients.

        Then ``weight`` is the share of the adversarial gradient in that of the reconstruction; it counts as at most ``ceiling``, so
        that the discriminator never takes over.
        """

        weight: float = 0.5
        start: int = 0
        balance: Literal["adaptive", "constant"] = "adaptive"
        ceiling: float = 1.0
        discriminator: PatchDiscriminator.Config = PatchDiscriminator.Config()

        def __post_init__(self) -> None:
            if min(self.weight, self.start, self.ceiling) < 0:
                raise ConfigError(f"adversarial.weight={self.weight}, start={self.start}, ceiling={self.ceiling}: must not be negative")

    ratio: Tensor
    _gradients: Tensor

    def __init__(self, config: Config, channels: int, last: torch.Size) -> None:
        super().__init__()
        self.config = config
        self.discriminator = config.discriminator.build(channels)
        self.register_buffer("ratio", torch.ones(()) if config.balance == "constant" else torch.zeros(()))
        self.register_buffer("_gradients", torch.zeros(2, *last), persistent=False)

    def on(self, step: int) -> float:
        """1 from the start step, else 0: a factor, so that every parameter has a gradient at any step."""
        return float(step >= self.config.start)

    def generator_loss(self, image_BCHW: Tensor, reconstruction: Tensor, last: Tensor, step: int, rows: int, total: int) -> Tensor:
        """The decoder's loss, weighted; notes the gradients of ``rows`` of ``total`` rows for the next step's weight."""
        # detached: this loss leaves no gradient in the discriminator's parameters
        frozen = {n: p.detach() for n, p in self.discriminator.named_parameters()}
        loss = -torch.func.functional_call(self.discriminator, frozen, (image_BCHW,)).mean()
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

    def discriminator_loss(self, real_BCHW: Tensor, fake_BCHW: Tensor, step: int) -> Tensor:
        """Hinge loss (arXiv:1705.02894)."""
        real, fake = self.discriminator(real_BCHW), self.discriminator(fake_BCHW.detach())
        return self.on(step) * 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """The next step's adaptive weight, from the gradients of the global batch."""
        if self.config.balance == "adaptive":
            reconstruction, loss = all_reduce_sum(self._gradients).flatten(1).norm(dim=1)
            self.ratio.copy_((reconstruction / (loss + 1e-4)).clamp(0, 1e4))
            self._gradients.zero_()
        return {"adversarial_ratio": float(self.ratio)}

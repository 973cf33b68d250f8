"""Losses of a tokenizer's reconstruction: pixels, and perceptual (LPIPS, ConvNeXt).

Shapes: B rows, C channels, H W image.  Every loss is a mean over the batch's rows, so shares of a batch add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.parts.nets.convnext import ConvNeXt


@dataclass(frozen=True, kw_only=True)
class Pixels(configs.Config, tag="loss.pixels"):
    """Mean absolute (l1) or squared (l2) difference of the pixels."""

    norm: Literal["l1", "l2"] = "l1"
    weight: float = 1.0

    def __call__(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The weighted loss, a scalar."""
        return self.weight * (F.l1_loss if self.norm == "l1" else F.mse_loss)(image_BCHW, target_BCHW)


@dataclass(frozen=True, kw_only=True)
class LogitLaplace(configs.Config, tag="loss.logit_laplace"):
    """Negative logarithm of a Laplace density on the logits of the pixels, of one ``scale`` b and without its constants.

    DALL-E, arXiv:2102.12092, equation 2 with ``eps`` of its equation 3; ViT-VQGAN, arXiv:2110.04627, section 3.2.
    """

    weight: float = 0.1
    scale: float = 1.0
    eps: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.eps < 0.5 or self.scale <= 0:
            raise ConfigError(f"logit_laplace.eps={self.eps}, scale={self.scale}: eps in (0, 0.5), scale positive")

    def __call__(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """The weighted loss of images in [-1, 1], a scalar; what is made may leave that range by less than ``eps``."""
        return self.weight * (self._logit(image_BCHW) - self._logit(target_BCHW)).abs().mean() / self.scale

    def _logit(self, image_BCHW: Tensor) -> Tensor:
        inside = (1 - 2 * self.eps) * (image_BCHW + 1) / 2 + self.eps  # equation 3: [0, 1] to [eps, 1 - eps]
        return torch.logit(inside.clamp(self.eps / 4, 1 - self.eps / 4))


class Perceptual(nn.Module):
    """LPIPS on VGG-16 features (arXiv:1801.03924, equation 1), frozen.

    The weights are the ``lpips`` package's state dict of ``LPIPS(net="vgg")`` as safetensors: ``net.slice1.0.weight`` …
    and ``lin0.model.1.weight`` …
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="loss.perceptual"):
        """``weights`` is the path of the safetensors file; ``convnext`` one of ConvNeXt-S, whose logits count too (TiTok's second loss)."""

        weights: str
        weight: float = 1.0
        convnext: Added[str] = ""
        convnext_weight: Added[float] = 0.1

    #: Convolutions of VGG-16 by slice: index in ``features``; a slice ends where a feature is taken.
    SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def __init__(self, config: Config) -> None:
        """The frozen network.

        Raises:
            ConfigError: the file is missing or does not hold this network.
        """
        super().__init__()
        self.config = config
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
        self.convnext = ConvNeXt.of_file(config.convnext, "perceptual.convnext") if config.convnext else None
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    def _features(self, x_BCHW: Tensor) -> list[Tensor]:
        h = (x_BCHW.expand(-1, 3, -1, -1) - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for s, indices in enumerate(self.SLICES):
            h = F.max_pool2d(h, 2) if s else h
            for i in indices:
                h = F.relu(F.conv2d(h, self.get_buffer(f"conv{i}_weight"), self.get_buffer(f"conv{i}_bias"), padding=1))
            # unit length as published; the bound keeps the gradient of a length of zero finite
            features.append(h / (h.square().sum(1, keepdim=True).clamp_min(1e-30).sqrt() + 1e-10))
        return features

    def forward(self, image_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Mean distance of images in [-1, 1] of 1 or 3 channels and at least 16 pixels, a scalar, relative to ``weight``."""
        pairs = zip(self._features(image_BCHW), self._features(target_BCHW))
        distances = [F.conv2d((a - b).square(), self.get_buffer(f"linear{s}")).mean() for s, (a, b) in enumerate(pairs)]
        total = torch.stack(distances).sum()
        if self.convnext is None:
            return total
        share = self.config.convnext_weight / self.config.weight
        return total + share * F.mse_loss(self.convnext(image_BCHW), self.convnext(target_BCHW))

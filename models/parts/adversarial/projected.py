"""Heads on the features of a frozen DINO as a discriminator (StyleGAN-T, arXiv:2301.09515; of the tokenizers of VAR, UniTok, GigaTok).

Shapes: B rows, C channels, H W image, S slots, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.adversarial.base import Discriminator
from tokenloom.models.parts.nets.dino import Dino, DinoViT


class Projected(nn.Module):
    """A head a tap: features of all slots, the class token among them, to one logit a slot."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Discriminator, tag="net.projected_discriminator"):
        """``trunk`` is frozen and not saved; its features are taken as embedded (0) and after the blocks counted from 1.

        With DINO S/16 the five heads have 7,386,245 parameters.  The side of the images that enter is the trunk's ``side``.
        """

        trunk: Dino
        after: tuple[int, ...] = (0, 3, 6, 9, 12)
        kernel: int = 9
        norm: Literal["batch", "group"] = "batch"
        weights: Literal["spectral", "plain"] = "spectral"

        def __post_init__(self) -> None:
            if not self.after or not 0 <= min(self.after) <= max(self.after) <= self.trunk.depth:
                raise ConfigError(f"discriminator.after={list(self.after)}: 0 is the embedding, {self.trunk.depth} the last block")
            if self.kernel < 1 or self.kernel % 2 == 0:
                raise ConfigError(f"discriminator.kernel={self.kernel}: must be odd")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleList(_head(config) for _ in config.after)
        self._trunk: list[DinoViT] = []

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, taps times slots)."""
        if not self._trunk:  # read when first used: using a tokenizer needs no such file
            self._trunk = [self.config.trunk.build(3, self.config.trunk.width).requires_grad_(False).eval()]
        features = self._trunk[0].to(x_BCHW).taps(x_BCHW, self.config.after)
        return torch.cat([head(f_BSD.transpose(1, 2)).flatten(1) for head, f_BSD in zip(self.heads, features)], 1)


class _Stage(nn.Module):
    """A convolution along the slots, which stand in a ring, norm, leaky ReLU."""

    def __init__(self, config: Projected.Config, kernel: int) -> None:
        super().__init__()
        width = config.trunk.width
        self.conv = _weighed(nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular"), config)
        batch = config.norm == "batch"
        self.norm = nn.BatchNorm1d(width, eps=1e-6, track_running_stats=False) if batch else nn.GroupNorm(32, width, eps=1e-6)

    def forward(self, x_BDS: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x_BDS)), 0.2)


class _Beside(nn.Module):
    """A stage beside its input, their mean in energy."""

    def __init__(self, stage: _Stage) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x_BDS: Tensor) -> Tensor:
        return (self.stage(x_BDS) + x_BDS) * math.sqrt(0.5)


def _weighed(conv: nn.Conv1d, config: Projected.Config) -> nn.Module:
    return spectral_norm(conv) if config.weights == "spectral" else conv


def _head(config: Projected.Config) -> nn.Sequential:
    out = _weighed(nn.Conv1d(config.trunk.width, 1, 1), config)
    return nn.Sequential(_Stage(config, 1), _Beside(_Stage(config, config.kernel)), out)

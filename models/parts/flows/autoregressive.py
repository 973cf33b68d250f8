"""Autoregressive affine flows over a sequence, by causal transformers (TarFlow, arXiv:2412.06329).

Shapes: B rows, T patches, C channels of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Init, Transformer
from tokenloom.models.parts.norms import PreNorm
from tokenloom.models.parts.visibility import EVERYTHING, Causal


@dataclass(frozen=True, kw_only=True)
class FlowGuidance(configs.Config, tag="sampler.flow"):
    """Guidance of a flow's inverse (arXiv:2412.06329, section 3.5): ``v + w (v - v of no class)`` for log-scales ("a") and shifts ("b").

    ``weight`` grows along the patches to itself where ``annealed``; attention without a class has a ``temperature`` of its own.
    """

    weight: float = 0.0
    what: Literal["ab", "a", "b"] = "ab"
    annealed: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf") or not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"sampler.weight={self.weight}, temperature={self.temperature}: finite, weight not negative, temperature positive"
            )

    def at(self, index: int, count: int) -> float:
        """The weight for patch ``index`` + 1 of so many."""
        return self.weight * (index + 1) / (count - 1) if self.annealed else self.weight


class Tempered(LayerCache):
    """Keys divided by a temperature, which is the scores' (no score has a bias)."""

    temperature: float = 1.0

    def append(self, key_BHSE: Tensor, value_BHSE: Tensor) -> tuple[Tensor, Tensor]:
        return super().append(key_BHSE / self.temperature, value_BHSE)


class AutoregressiveFlow(nn.Module):
    """``z_t = (x_t - b_t) exp(-a_t)``, where a and b depend on the patches before t, in order or from the last to the first; the first
    patch stays (equations 4 and 5).  Without scales only shifts are left, and volume is preserved."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="flow.autoregressive"):
        """``depth`` blocks of ``width`` in heads of ``head_width``; ``scales``: affine, or shifts alone."""

        width: int
        depth: int
        head_width: int = 64
        scales: bool = True

        def __post_init__(self) -> None:
            if min(self.width, self.depth, self.head_width) < 1 or self.width % self.head_width:
                raise ConfigError(
                    f"flow.width={self.width}, depth={self.depth}, head_width={self.head_width}: positive, and the width a multiple"
                )

        def build(self, length: int, channels: int, classes: int, flipped: bool) -> AutoregressiveFlow:
            """A flow of sequences (length, channels); ``classes`` may be 0; ``flipped`` goes from the last patch to the first."""
            return self.construct(length, channels, classes, flipped)

    def __init__(self, config: Config, length: int, channels: int, classes: int, flipped: bool) -> None:
        super().__init__()
        self.flipped, self.length = flipped, length
        self.enter = nn.Linear(channels, config.width)
        self.position = nn.Parameter(1e-2 * torch.randn(length, config.width))
        self.classes = nn.Parameter(1e-2 * torch.randn(classes, 1, config.width)) if classes else None
        net = Transformer.Config(
            width=config.width,
            depth=config.depth,
            heads=config.width // config.head_width,
            norm=PreNorm.Config(kind="layer", eps=1e-5, last="raw"),
            mlp=GELU.Config(form="none"),
            attention=Attention.Config(bias="qkv"),
            init=Init(std=0.02),
        )
        self.net = cast(Transformer, net.build(TokenLayout(grids=((1, length),), channels=channels, axis="sequence")))
        self.out = nn.Linear(config.width, 2 * channels if config.scales else channels)
        nn.init.zeros_(self.out.weight)  # the flow starts as the identity
        nn.init.zeros_(self.out.bias)

    def order(self, x_BTC: Tensor) -> Tensor:
        """Into the flow's order, or back."""
        return x_BTC.flip(1) if self.flipped else x_BTC

    def embedded(self, x_BnC: Tensor, places: slice, label_B: Tensor | None) -> Tensor:
        """Inputs of the net for patches at these places of the flow's order; labels below zero, or none, are the mean class."""
        x = self.enter(x_BnC) + (self.position.flip(0) if self.flipped else self.position)[places]
        if self.classes is None:
            return x
        mean = self.classes.mean(0)
        if label_B is None:
            return x + mean
        return x + torch.where((label_B < 0)[:, None, None], mean, self.classes[label_B.clamp_min(0)])

    def affine(self, h_BnD: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scales a and shifts b (B, n, C) of the patches after these."""
        out = self.out(h_BnD)
        a, b = out.chunk(2, -1) if self.out.out_features > self.enter.in_features else (torch.zeros_like(out), out)
        return a.float(), b.float()

    def forward(self, x_BTC: Tensor, label_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (B, T, C) and the log-determinant summed over patches and channels (B,)."""
        x = self.order(x_BTC)
        h = self.net.stack(self.embedded(x, slice(None), label_B), self._nowhere(x), Causal(), x)
        a, b = (nn.functional.pad(v[:, :-1], (0, 0, 1, 0)) for v in self.affine(h))
        return self.order((x - b) * (-a).exp()), -a.sum((1, 2))

    def inverse(self, z_BTC: Tensor, label_B: Tensor | None, guidance: FlowGuidance | None = None) -> Tensor:
        """x (B, T, C), patch after patch, with caches."""
        guided = guidance is not None and guidance.weight > 0 and label_B is not None
        z, caches = self.order(z_BTC), [self._cache(z_BTC, 1.0)]
        if guidance is not None and guided:
            caches.append(self._cache(z_BTC, guidance.temperature))
        found = [z[:, :1]]
        for i in range(self.length - 1):
            a, b = self._next(found[-1], i, label_B, caches[0])
            if guidance is not None and guided:
                w = guidance.at(i, self.length)
                a_null, b_null = self._next(found[-1], i, None, caches[1])
                a = a + w * (a - a_null) if "a" in guidance.what else a
                b = b + w * (b - b_null) if "b" in guidance.what else b
            found.append(z[:, i + 1 : i + 2] * a.exp() + b)
        return self.order(torch.cat(found, 1))

    def _next(self, x_B1C: Tensor, index: int, label_B: Tensor | None, cache: Sequence[LayerCache]) -> tuple[Tensor, Tensor]:
        x = self.embedded(x_B1C, slice(index, index + 1), label_B)
        return self.affine(self.net.stack(x, self._nowhere(x), EVERYTHING, x, list(cache)))

    def _cache(self, like_BTC: Tensor, temperature: float) -> list[LayerCache]:
        attention = cast(Attention, self.net.attention[0])
        layers = [Tempered(len(like_BTC), attention.heads, self.length, attention.head_width, like_BTC) for _ in self.net.attention]
        for layer in layers:
            layer.temperature = temperature
        return list(layers)

    @staticmethod
    def _nowhere(x: Tensor) -> Tensor:
        return torch.full((1, x.shape[1]), -1, device=x.device)

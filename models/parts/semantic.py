"""Semantic regularisation: inner features of the decoder point where a frozen network's do (GigaTok, arXiv:2504.08736, section 3.2).

Shapes: B rows, C channels, H W image, D width of the decoder, E channels of the teacher, h w grid of the decoder's features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.base import Inner
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.models.parts.nets.dino import Dino
from tokenloom.models.parts.nets.frozen import Classified


class Featured(Protocol):
    """A decoder with features on the image plane."""

    def inner(self, depth: int) -> Inner:
        """Those after ``depth`` blocks."""


class Semantic(nn.Module):
    """A small MLP on the decoder's features, trained to the cosine similarity 1 with the teacher's at the same place.

    The teacher is neither trained nor saved with the tokenizer, and encoding and decoding never ask for it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="loss.semantic"):
        """Features after ``depth`` blocks of the decoder; ``teacher`` is the classifier of the data or a DINO of a file."""

        depth: int
        weight: float = 0.5
        teacher: Classified | Dino = Classified()
        ratio: float = 2.0  # hidden width of the MLP over the decoder's

        def __post_init__(self) -> None:
            if self.depth < 1 or self.weight <= 0 or self.ratio <= 0:
                raise ConfigError(f"semantic.depth={self.depth}, weight={self.weight}, ratio={self.ratio}: must be positive")

        @property
        def needs(self) -> tuple[str, ...]:
            return ("features",) if isinstance(self.teacher, Classified) else ()

        def build(self, decoder: Featured, channels: int, features: dict[str, Any] | None = None) -> Semantic:
            """For images of ``channels``; ``features`` describes the classifier.

            Raises:
                ConfigError: no such classifier, or a decoder without such features.
            """
            if isinstance(self.teacher, Dino):
                return Semantic(self, decoder, channels, self.teacher.width)
            if features is None:
                raise ConfigError("semantic: this tokenizer needs the data's classifier and was given none")
            config = replace(self, teacher=Classified(shape=features))
            return Semantic(config, decoder, channels, 4 * int(features["protocol"]["width"]))

    def __init__(self, config: Config, decoder: Featured, channels: int, dim: int) -> None:
        super().__init__()
        self.config, self.channels, self.dim = config, channels, dim
        width = decoder.inner(config.depth).width
        hidden = round(config.ratio * width)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, dim))
        self._teacher: list[nn.Module] = []

    def adopt(self, classifier: nn.Module | None) -> None:
        """Take the trained classifier as the teacher, if that is what the teacher is."""
        if isinstance(self.config.teacher, Dino):
            return
        if not isinstance(classifier, Classifier):
            raise ConfigError("semantic: this tokenizer needs the data's classifier and was given none")
        trunk = self.config.teacher.build(self.channels, self.dim)
        trunk.adopt(classifier)
        self._teacher = [trunk.requires_grad_(False).eval()]

    @contextmanager
    def listening(self, decoder: Featured) -> Iterator[list[Tensor]]:
        """While it lasts, each run of the decoder adds its inner features (B, D, h, w) to the list."""
        heard: list[Tensor] = []
        inner = decoder.inner(self.config.depth)
        handle = inner.module.register_forward_hook(lambda module, given, found: heard.append(inner.lay(found)))
        try:
            yield heard
        finally:
            handle.remove()

    def forward(self, inner_BDhw: Tensor, image_BCHW: Tensor) -> Tensor:
        """The weighted loss: 1 less the cosine similarity, a mean over places and rows (equation 2)."""
        if not self._teacher:
            if not isinstance(self.config.teacher, Dino):
                raise ConfigError("semantic: training needs the data's classifier; adopt it first")
            self._teacher = [self.config.teacher.build(self.channels, self.dim).requires_grad_(False).eval()]
        with torch.no_grad():
            target_BEhw = self._teacher[0].to(image_BCHW)(image_BCHW)
            target_BEhw = F.adaptive_avg_pool2d(target_BEhw, (inner_BDhw.shape[2], inner_BDhw.shape[3]))
        found_BEhw = self.head(inner_BDhw.movedim(1, -1)).movedim(-1, 1)
        return self.config.weight * (1 - F.cosine_similarity(found_BEhw.float(), target_BEhw.float(), dim=1)).mean()


def aligned(weight: float, depth: int, dino: str = "") -> Semantic.Config | None:
    """The alignment of a decoder's block with the DINO of a file, or else with the toy classifier of the data; none of weight 0."""
    teacher = Dino.of_file(dino) if dino else Classified()
    return Semantic.Config(depth=depth, weight=weight, teacher=teacher) if weight else None

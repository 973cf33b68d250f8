"""Features of a text as they are.  Shapes: B rows, T text length, W features."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TextFeatures
from tokenloom.models.parts.conditions import Conditioned, Conditioner, Single


class PlainFeatures(Single):
    """Features of a frozen text encoder, unchanged, as prefix slots; the null text is zeros."""

    name = TextFeatures.name
    takes = TextFeatures
    what = "text features"

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.plain_features"):
        """``length`` prefix slots; ``dropout``: share of texts replaced by null in training."""

        length: int
        dropout: float = 0.1

        @property
        def names(self) -> tuple[str, ...]:
            return (TextFeatures.name,)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.length, self.rate, self.width = config.length, config.dropout, width

    @property
    def prefix(self) -> int:
        """Prefix slots P."""
        return self.length

    def null_of(self, condition: TextFeatures) -> TextFeatures:
        return TextFeatures(torch.zeros_like(condition.feature_BTD), condition.mask_BT)

    def drop_of(self, condition: TextFeatures, draws: Draws) -> TextFeatures:
        kept = draws.uniform(1, 1) >= self.rate
        return TextFeatures(condition.feature_BTD * kept, condition.mask_BT)

    def embed_of(self, condition: TextFeatures) -> Conditioned:
        """The features.

        Raises:
            ValueError: features of another length or width.
        """
        feature = condition.feature_BTD
        if feature.shape[1:] != (self.length, self.width):
            raise ValueError(f"this model is conditioned on text features of length {self.length} and width {self.width}")
        return Conditioned(feature, feature.mean(1))

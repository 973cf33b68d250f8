"""Features of a frozen text encoder as prefix slots (LlamaGen's text to image, arXiv:2406.06525).

Shapes: B rows, P prefix slots, T text length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Condition, Conditions, TextFeatures
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned, Conditioner, Single
from tokenloom.models.parts.plan import Plan


def present(condition: TextFeatures, null_TF: Tensor) -> TextFeatures:
    """The features, with the null text in rows that have no text at all."""
    mask = condition.mask_BT
    if mask is None:
        return condition
    missing = ~mask.bool().any(1)
    feature = torch.where(missing[:, None, None], null_TF[: mask.shape[1]].to(condition.feature_BTD), condition.feature_BTD)
    return TextFeatures(feature, mask.bool() | missing[:, None])


class TextCondition(Single):
    """Features of a frozen text encoder through a small MLP, as prefix slots (LlamaGen t2i)."""

    name = TextFeatures.name
    takes = TextFeatures
    what = "text features"

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.text_features"):
        """``features`` width of the encoder, ``length`` prefix slots (shorter texts are padded on the left).

        ``encoder``: folder or hub name of the text model that makes the features ("": they are given)."""

        features: int
        length: int = 120
        dropout: float = 0.1
        encoder: Added[str] = ""

        @property
        def names(self) -> tuple[str, ...]:
            return (TextFeatures.name,)

    null_feature: Tensor

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.length, self.rate = config.length, config.dropout
        self.up = nn.Linear(config.features, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("null_feature", torch.randn(config.length, config.features) / config.features**0.5)

    @property
    def prefix(self) -> int:
        """Prefix slots P."""
        return self.length

    def traits(self, plan: Plan) -> Traits:
        # Texts without a mask have none, but what a model is given is not known when it is built.
        return {**super().traits(plan), "padded prefix slots": Trait("some", "condition.length")}

    def null_of(self, condition: TextFeatures) -> TextFeatures:
        """The null text, with the mask of the given one: the slots that it pads stay hidden."""
        return TextFeatures(self.null_feature.expand_as(condition.feature_BTD), condition.mask_BT)

    def drop_of(self, condition: TextFeatures, draws: Draws) -> TextFeatures:
        gone = draws.uniform(1, 1) < self.rate
        return TextFeatures(torch.where(gone, self.null_feature, condition.feature_BTD), condition.mask_BT)

    def own(self, conditions: Conditions | Condition) -> Any:
        return present(super().own(conditions), self.null_feature)

    def embed_of(self, condition: TextFeatures) -> Conditioned:
        """Project features.

        Raises:
            ValueError: features of another length.
        """
        if condition.feature_BTD.shape[1] != self.length:
            raise ValueError(f"this model is conditioned on text features of length {self.length}")
        prefix = self.out(F.gelu(self.up(condition.feature_BTD), approximate="tanh"))
        seen = None if condition.mask_BT is None else condition.mask_BT.bool()
        return Conditioned(prefix, prefix.mean(1), seen)

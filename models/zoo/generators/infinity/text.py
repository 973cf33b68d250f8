"""Text as a memory for cross-attention, and pooled to one vector.

Shapes: B rows, T text length, F feature width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import Added
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Condition, Conditions, Labels, TextFeatures
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditioners.text_features import present
from tokenloom.models.parts.conditions import Conditioned, Conditioner, Labelled, Single, class_count
from tokenloom.models.parts.plan import Plan
from tokenloom.models.zoo.generators.infinity.cross_attention import AttentivePool


class PooledText(Single):
    """Features of a frozen text encoder: normed, mapped to a memory, and pooled by attention to the vector (Infinity, arXiv:2412.04431).

    There are no prefix slots; texts may have any length up to ``length``, those of a batch are padded and masked.
    """

    name = TextFeatures.name
    takes = TextFeatures
    what = "text features"

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.pooled_text"):
        """``features`` width of the encoder, ``heads`` of the pool; a null text of ``length`` is learned.

        ``encoder``: folder or hub name of the text model that makes the features ("": they are given)."""

        features: int
        heads: int
        length: int = 512
        dropout: float = 0.1
        eps: float = 1e-6
        encoder: Added[str] = ""

        @property
        def names(self) -> tuple[str, ...]:
            return (TextFeatures.name,)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.length, self.rate = config.length, config.dropout
        self.null_text = nn.Parameter(torch.empty(config.length, config.features))
        nn.init.trunc_normal_(self.null_text, std=1.2)
        with torch.no_grad():
            self.null_text.div_(config.features**0.5)
        self.norm = nn.RMSNorm(config.features, eps=config.eps)
        self.pool = AttentivePool(width, config.heads, config.features)
        self.memory = nn.Sequential(nn.Linear(config.features, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))

    @property
    def prefix(self) -> int:
        """None."""
        return 0

    def traits(self, plan: Plan) -> Traits:
        return {**super().traits(plan), "memory": Trait("yes", "condition")}

    def null_of(self, condition: TextFeatures) -> TextFeatures:
        """The null text, as long as the given one."""
        feature = condition.feature_BTD
        return TextFeatures(self.null_text[: feature.shape[1]].expand_as(feature), condition.mask_BT)

    def drop_of(self, condition: TextFeatures, draws: Draws) -> TextFeatures:
        gone = draws.uniform(1, 1) < self.rate
        return TextFeatures(torch.where(gone, self.null_of(condition).feature_BTD, condition.feature_BTD), condition.mask_BT)

    def own(self, conditions: Conditions | Condition) -> Any:
        return present(super().own(conditions), self.null_text)

    def embed_of(self, condition: TextFeatures) -> Conditioned:
        """Pool and map.

        Raises:
            ValueError: a text that is too long.
        """
        if condition.feature_BTD.shape[1] > self.length:
            raise ValueError(f"this model is conditioned on text features of length {self.length} at most")
        text: Tensor = self.norm(condition.feature_BTD)
        seen = None if condition.mask_BT is None else condition.mask_BT.bool()
        vector = self.pool(text, seen)
        return Conditioned(vector.new_empty(len(vector), 0, vector.shape[-1]), vector, None, self.memory(text), seen)


class ClassText(Labelled):
    """Class labels as texts of learned features, for nets that look at a memory."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.class_text", label="text as class"):
        """``length`` features a class, each of the net's width; ``dropout`` share of labels replaced by the null text."""

        classes: int | None = None
        heads: int
        length: int = 4
        dropout: float = 0.1

    def __init__(self, config: Config, classes: int, width: int) -> None:
        super().__init__(class_count(config.classes, classes), config.dropout)
        self.text = PooledText(PooledText.Config(features=width, heads=config.heads, length=config.length), width)
        self.table = nn.Parameter(torch.empty(self.classes, config.length, width))
        nn.init.trunc_normal_(self.table, std=1.0)

    @property
    def prefix(self) -> int:
        """None."""
        return 0

    def traits(self, plan: Plan) -> Traits:
        return self.text.traits(plan)

    def embed_of(self, condition: Labels) -> Conditioned:
        """Look up the classes' texts."""
        texts = torch.cat([self.table, self.text.null_text[None]])
        return self.text.embed_of(TextFeatures(texts[condition.label_B]))

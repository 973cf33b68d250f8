"""Texts as tokens of the sequence itself: bytes between two symbols.  Shapes: B rows, P slots of text, D width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Text
from tokenloom.models.parts.conditions import Conditioned, Single

PAD, START, IMAGE, BYTES = 0, 1, 2, 3


class Words(Single):
    """START, the bytes of the text (UTF-8) and IMAGE as a prefix that ends where the image begins; padding stands before it.

    The null text has no bytes."""

    name = Text.name
    takes = Text
    what = "texts"

    @dataclass(frozen=True, kw_only=True)
    class Config(Single.Config, tag="condition.words"):
        """``length`` of the longest text in bytes; ``vocabulary``: rows of the table; ``dropout``: share of texts replaced by null."""

        length: int = 64
        vocabulary: int = BYTES + 256
        dropout: float = 0.1

        def __post_init__(self) -> None:
            if self.length < 1 or self.vocabulary < 1 or not 0 <= self.dropout < 1:
                raise ConfigError(f"condition.length={self.length}, vocabulary={self.vocabulary}, dropout={self.dropout}: out of range")

        @property
        def names(self) -> tuple[str, ...]:
            return (Text.name,)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config, self.rate = config, config.dropout
        self.table = nn.Embedding(config.vocabulary, width)
        nn.init.normal_(self.table.weight, std=0.02)

    @property
    def prefix(self) -> int:
        """Prefix slots P."""
        return self.config.length + 2

    def null_of(self, condition: Text) -> Text:
        return Text(condition.byte_BT, torch.zeros_like(condition.length_B))

    def drop_of(self, condition: Text, draws: Draws) -> Text:
        return Text(condition.byte_BT, torch.where(draws.uniform() < self.rate, 0, condition.length_B))

    def ids(self, condition: Text) -> tuple[Tensor, Tensor]:
        """Ids (B, P) and where they are no padding.

        Raises:
            ValueError: a text that is too long, or a table without bytes.
        """
        longest, length = condition.byte_BT.shape[1], self.config.length
        if longest > length:
            raise ValueError(f"a text of {longest} bytes; this model takes at most {length}: shorten it, or train with a larger length")
        if self.config.vocabulary < BYTES + 256:
            raise ValueError(f"a vocabulary of {self.config.vocabulary} has no bytes: this model reads the ids of a tokenizer of texts")
        place = torch.arange(length + 1, device=condition.byte_BT.device) - (length - condition.length_B[:, None])  # 0: START
        index = (place - 1).clamp(0, max(0, longest - 1))
        byte = condition.byte_BT.long().gather(1, index) if longest else torch.zeros_like(index)
        ids = torch.where(place > 0, byte + BYTES, torch.where(place == 0, START, PAD))
        ids = torch.cat([ids, torch.full_like(ids[:, :1], IMAGE)], 1)
        return ids, ids != PAD

    def embed_of(self, condition: Text) -> Conditioned:
        ids, seen = self.ids(condition)
        x = self.table(ids)
        return Conditioned(x, x[:, -1], seen)

"""Captions read by a small transformer that learns with the generator: byte by byte, or from the features of a frozen encoder.

Shapes: B rows, T bytes or pieces of text, F feature width, D width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Text, TextFeatures
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.conditions import Conditioned, Single
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.visibility import Mask

BYTES = 256
_BASE, _PRIME = 263, 1_000_003  # of the hash of runs of bytes


class Reader(nn.Module):
    """Pre-norm blocks over a text with learned positions; a last slot of its own sums the text up."""

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(1, length + 1, width))
        self.attention = nn.ModuleList([Attention.Config(bias="out").build(width, heads) for _ in range(depth)])
        self.mlp = nn.ModuleList([GELU.Config().build(width) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * depth + 1)])
        self.out = nn.Linear(width, width, bias=False)
        nn.init.trunc_normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_BTD: Tensor, seen_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The text read, (B, T + 1, D), its sum in the last slot, and what of it may be looked at, (B, T + 1): not the padding."""
        x = F.pad(x_BTD, (0, 0, 0, 1)) + self.position
        seen = F.pad(seen_BT, (0, 1), value=True)
        visibility = Mask(seen[:, None])
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp)):
            x = x + attention(self.norms[2 * i](x), visibility, None, None)
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.out(self.norms[-1](x)), seen


class ReadText(Single):
    """A text as one summed-up vector, as prefix slots and as a memory: what any net may ask for.

    The null text is the one without content, which is also what an image without a caption has.  A text is always padded to
    ``length``, so that its reading does not depend on the others of its batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Single.Config):
        """``length`` of the longest text, ``depth`` and ``heads`` of the reader, ``dropout`` share of texts replaced by null in training.

        ``prefix``: one slot with the sum (``summary``), the whole text before it (``all``), or none, for nets that look at the memory.
        """

        length: int = 64
        depth: int = 2
        heads: int = 4
        prefix: Literal["summary", "all", "none"] = "summary"
        dropout: float = 0.1

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1:
                raise ConfigError(f"condition.dropout={self.dropout}: must be in [0, 1)")
            for name in ("length", "depth", "heads"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"condition.{name}={getattr(self, name)}: must be at least 1")

        def check(self, width: int) -> None:
            """Raise ``ConfigError`` where the heads do not fit the net's width."""
            if width % self.heads:
                raise ConfigError(f"condition.heads={self.heads}: must divide the net's width, {width}")

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        config.check(width)
        self.config, self.length, self.rate = config, config.length, config.dropout
        self.reader = Reader(width, config.depth, config.heads, config.length)

    @abstractmethod
    def embed(self, condition: Any) -> tuple[Tensor, Tensor]:
        """Inputs of the reader (B, ``length``, D), and where they are text (B, ``length``).

        Raises:
            ValueError: a text that is too long.
        """

    @property
    def prefix(self) -> int:
        """Prefix slots P."""
        return {"none": 0, "summary": 1, "all": self.length + 1}[self.config.prefix]

    def traits(self, plan: Plan) -> Traits:
        padded = "some" if self.prefix > 1 else "none"
        return {**super().traits(plan), "memory": Trait("yes", "condition"), "padded prefix slots": Trait(padded, "condition.prefix")}

    def embed_of(self, condition: Any) -> Conditioned:
        """Read; raises ``ValueError`` for a text that is too long."""
        text, seen = self.reader(*self.embed(condition))
        slots = self.prefix
        return Conditioned(text[:, text.shape[1] - slots :], text[:, -1], seen if slots > 1 else None, text, seen)


def run_hash(byte_BT: Tensor, n: int) -> Tensor:
    """Polynomial hash (B, T) of the last ``n`` bytes at each place, below a prime; before the first byte there are zeros."""
    hashed = torch.zeros_like(byte_BT)
    for back in reversed(range(n)):
        hashed = (hashed * _BASE + F.pad(byte_BT, (back, 0))[:, : byte_BT.shape[1]] + 1) % _PRIME
    return hashed


class Characters(ReadText):
    """Captions byte by byte (UTF-8), without any vocabulary: small sets of captions need no pretrained encoder."""

    name = Text.name
    takes = Text
    what = "texts"

    @dataclass(frozen=True, kw_only=True)
    class Config(ReadText.Config, tag="condition.characters"):
        """``length`` in bytes.

        ``ngrams``: lengths of runs of bytes that have vectors of their own, in ``buckets`` of a hash, so that words are told apart from
        the first step on (arXiv:2412.09871, section 3.2.1).
        """

        ngrams: Added[tuple[int, ...]] = ()
        buckets: Added[int] = 4096

        def __post_init__(self) -> None:
            super().__post_init__()
            if any(not 2 <= n <= 16 for n in self.ngrams):
                raise ConfigError(f"condition.ngrams={list(self.ngrams)}: each must be from 2 to 16")
            if self.buckets < 1:
                raise ConfigError(f"condition.buckets={self.buckets}: must be at least 1")

        @property
        def names(self) -> tuple[str, ...]:
            return (Text.name,)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.table = nn.Embedding(BYTES, width)
        self.ngrams, self.buckets = config.ngrams, config.buckets
        self.runs = nn.ModuleList([nn.Embedding(config.buckets, width) for _ in config.ngrams])
        for table in (self.table, *self.runs):
            nn.init.trunc_normal_(table.weight, std=0.02)

    def null_of(self, condition: Text) -> Text:
        return Text(condition.byte_BT, torch.zeros_like(condition.length_B))

    def drop_of(self, condition: Text, draws: Draws) -> Text:
        return Text(condition.byte_BT, torch.where(draws.uniform() < self.rate, 0, condition.length_B))

    def embed(self, condition: Text) -> tuple[Tensor, Tensor]:
        longest = condition.byte_BT.shape[1]
        if longest > self.length:
            raise ValueError(
                f"a text of {longest} bytes; this model takes at most {self.length}: shorten it, or train with a larger length"
            )
        byte_BT = F.pad(condition.byte_BT, (0, self.length - longest)).long()
        x = self.table(byte_BT)
        for n, table in zip(self.ngrams, self.runs):
            x = x + table(run_hash(byte_BT, n) % self.buckets)
        return x, torch.arange(self.length, device=x.device) < condition.length_B[:, None]


class Encoded(ReadText):
    """Features of a frozen text encoder, mapped to the net's width and read."""

    name = TextFeatures.name
    takes = TextFeatures
    what = "features of texts"

    @dataclass(frozen=True, kw_only=True)
    class Config(ReadText.Config, tag="condition.encoded"):
        """``encoder``: folder or hub name of a text model; ``features``: the width of its last hidden states; ``length`` in its pieces."""

        encoder: str
        features: int

        @property
        def names(self) -> tuple[str, ...]:
            return (TextFeatures.name,)

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config, width)
        self.features = config.features
        self.norm = nn.RMSNorm(config.features)
        self.up = nn.Linear(config.features, width, bias=False)
        nn.init.trunc_normal_(self.up.weight, std=0.02)

    def null_of(self, condition: TextFeatures) -> TextFeatures:
        return TextFeatures(condition.feature_BTD, torch.zeros_like(condition.feature_BTD[..., 0], dtype=torch.bool))

    def drop_of(self, condition: TextFeatures, draws: Draws) -> TextFeatures:
        kept = draws.uniform(1) >= self.rate
        return TextFeatures(condition.feature_BTD, self._mask(condition) & kept)

    def embed(self, condition: TextFeatures) -> tuple[Tensor, Tensor]:
        longest, width = condition.feature_BTD.shape[1:]
        if longest > self.length or width != self.features:
            raise ValueError(
                f"features of {longest} pieces and width {width}; this model takes at most {self.length} pieces of width {self.features}"
            )
        x = self.up(self.norm(F.pad(condition.feature_BTD, (0, 0, 0, self.length - longest))))
        return x, F.pad(self._mask(condition), (0, self.length - longest))

    def _mask(self, condition: TextFeatures) -> Tensor:
        return torch.ones_like(condition.feature_BTD[..., 0], dtype=torch.bool) if condition.mask_BT is None else condition.mask_BT.bool()

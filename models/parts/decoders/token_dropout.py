"""Which tokens condition a denoising step, and which it requires.

Shapes: B rows, N tokens.  A decoder's clock u runs evenly from 0 (noise) to 1 (image).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws


class TokenDropout(configs.Config, ABC):
    """A rule; concrete ones are frozen dataclasses."""

    @abstractmethod
    def check(self, length: int, steps: int) -> None:
        """Raise ``ConfigError`` unless the rule fits ``length`` tokens decoded in ``steps`` steps."""

    @abstractmethod
    def keep(self, draws: Draws, length: int) -> Tensor:
        """Tokens (B,) that a row keeps in this training step."""

    @abstractmethod
    def shown(self, u_B: Tensor, length: int) -> Tensor:
        """How many tokens (B,) a step at this hour may see."""

    @abstractmethod
    def needed(self, u_B: Tensor, length: int) -> Tensor:
        """How many tokens (B,) there must be for the step to be made."""

    def seen(self, u_B: Tensor, keep_B: Tensor, length: int) -> Tensor:
        """(B, N): true for the tokens that a row has and that its hour shows."""
        count_B = torch.minimum(keep_B, self.shown(u_B, length))
        return torch.arange(length, device=u_B.device) < count_B[:, None]

    def null(self) -> float:
        """Share of training rows without any token: what guidance leans on."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Nested(TokenDropout, tag="dropout.nested"):
    """Nested dropout (arXiv:1402.0915, FlexTok): a row keeps its first k tokens, so that any prefix decodes.

    ``choose``: k is one of the powers of two up to N and N itself, or any number from 1 to N; all are equally likely.
    ``none`` is the share of rows that keep no token at all.
    """

    choose: Literal["powers", "uniform"] = "powers"
    none: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.none < 1:
            raise ConfigError(f"reveal.none={self.none}: must be in [0, 1)")

    def check(self, length: int, steps: int) -> None:
        pass

    def keep(self, draws: Draws, length: int) -> Tensor:
        u_B2 = draws.uniform(2)
        counts = prefixes(length) if self.choose == "powers" else list(range(1, length + 1))
        index_B = (u_B2[:, 0] * len(counts)).long().clamp_max(len(counts) - 1)
        keep_B = torch.tensor(counts, device=u_B2.device)[index_B]
        return torch.where(u_B2[:, 1] < self.none, torch.zeros_like(keep_B), keep_B)

    def shown(self, u_B: Tensor, length: int) -> Tensor:
        return torch.full_like(u_B, length, dtype=torch.int64)

    def needed(self, u_B: Tensor, length: int) -> Tensor:
        return torch.zeros_like(u_B, dtype=torch.int64)

    def null(self) -> float:
        return self.none


@dataclass(frozen=True, kw_only=True)
class Staged(TokenDropout, tag="dropout.staged"):
    """Sequential diffusion (D-AR): the k-th of ``groups`` equal groups of tokens appears when the k-th interval of the clock begins.

    ``sight``: a step sees all groups that have appeared, or that of its interval alone, as published: a causal reader of the tokens has
    told it of those before.
    """

    groups: int
    sight: Added[Literal["appeared", "own"]] = "appeared"

    def check(self, length: int, steps: int) -> None:
        if self.groups < 1 or length % self.groups or steps % self.groups:
            raise ConfigError(f"reveal.groups={self.groups}: must divide the {length} tokens and the {steps} steps")

    def keep(self, draws: Draws, length: int) -> Tensor:
        return torch.full((draws.rows,), length, device=draws.device)

    def shown(self, u_B: Tensor, length: int) -> Tensor:
        # a hair more, so that a step that begins an interval is in it in spite of rounding
        stage_B = (u_B.float() * self.groups + 1e-4).long().clamp(0, self.groups - 1)
        return (stage_B + 1) * (length // self.groups)

    def needed(self, u_B: Tensor, length: int) -> Tensor:
        return self.shown(u_B, length)

    def seen(self, u_B: Tensor, keep_B: Tensor, length: int) -> Tensor:
        seen_BN = super().seen(u_B, keep_B, length)
        if self.sight == "appeared":
            return seen_BN
        first_B = self.shown(u_B, length) - length // self.groups
        return seen_BN & (torch.arange(length, device=u_B.device) >= first_B[:, None])


def prefixes(length: int) -> list[int]:
    """1, 2, 4, … below ``length``, then ``length`` itself."""
    return [2**i for i in range(length.bit_length()) if 2**i < length] + [length]

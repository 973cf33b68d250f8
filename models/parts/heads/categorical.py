"""Heads say what the distribution of one position is.  Shapes: B rows, S slots, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import config
from models.protocols import LayoutError, TokenLayout
from models.sampling.filters import draw, keep_top_k, keep_top_p
from models.sampling.sampler import Sampler


class Categorical(nn.Module):
    """A softmax over the codebook; logits, likelihood and sampling in at least float32."""

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """``bias`` of the output map and the size of its initial weights (0: zeros, as LlamaGen)."""

        bias: Literal["yes", "no"] = "no"
        init_std: float = 0.0

        def build(self, layout: TokenLayout, width: int) -> Categorical:
            """The head for these tokens."""
            if not layout.discrete or layout.codebooks != 1:
                raise LayoutError("a categorical head needs discrete tokens of one codebook")
            return Categorical(self, layout.vocabulary, width)

    def __init__(self, config: Config, vocabulary: int, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, vocabulary, bias=config.bias == "yes")
        nn.init.trunc_normal_(self.out.weight, std=config.init_std) if config.init_std else nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def logits(self, h_BSD: Tensor) -> Tensor:
        """(B, S, V) logits."""
        logits = self.out(h_BSD)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def nll(self, h_BSD: Tensor, target_BS: Tensor) -> Tensor:
        """(B, S) negative log-likelihood of the targets in nats."""
        return F.cross_entropy(self.logits(h_BSD).flatten(0, 1), target_BS.flatten(), reduction="none").view(target_BS.shape)

    def guided(self, h_BSD: Tensor, null_BSD: Tensor | None, weight: float) -> Tensor:
        """(B, S, V) logits under classifier-free guidance: ``(1 + w) cond - w null`` (arXiv:2207.12598, eq. 6)."""
        logits = self.logits(h_BSD)
        return logits if null_BSD is None else (1 + weight) * logits - weight * self.logits(null_BSD)

    def sample(self, logits_BSV: Tensor, sampler: Sampler, progress: float, generator: torch.Generator) -> Tensor:
        """(B, S) ids drawn from guided logits after temperature, top-k and top-p."""
        logits = logits_BSV / max(sampler.temperature.at(progress), 1e-6)
        return draw(keep_top_p(keep_top_k(logits, sampler.top_k), sampler.top_p), generator)

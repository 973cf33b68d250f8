"""The categorical head: a softmax over the codebook.  Shapes: B rows, N positions, K hidden states, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.feeds.embedding import table_of
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.filters import inverse, keep
from tokenloom.models.sampling.sampler import Moment, Sampler


def full(logits: Tensor) -> Tensor:
    """Logits in at least float32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def pick(logits: Tensor, sampler: Sampler, moment: Moment, draws: SampleDraws, stream: str = "head") -> Tensor:
    """Ids drawn from (B, …, V) guided logits after temperature, top-k and top-p, by one number each of this stream."""
    logits = logits / max(sampler.temperature.on(moment), 1e-6)
    uniform = draws.uniform(stream, moment.step, *logits.shape[1:-1])
    return inverse(keep(logits, sampler.top_k, sampler.top_p), uniform)


class Categorical(Head):
    """One linear map to the logits; logits, likelihood and sampling in at least float32."""

    likelihood = "exact"
    never: int = 0

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.categorical"):
        """``bias`` of the output map and the size of its initial weights (0: zeros, as LlamaGen); the first ``never`` ids, symbols
        that no image holds, are predicted but not drawn."""

        bias: Literal["yes", "no"] = "no"
        init_std: float = 0.0
        never: Added[int] = 0

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        vocabulary = single(layout)
        if not 0 <= config.never < vocabulary:
            raise ConfigError(f"head.never={config.never}: must leave some of the {vocabulary} ids to draw")
        self.never = config.never
        self.out = nn.Linear(width, vocabulary, bias=config.bias == "yes")
        nn.init.trunc_normal_(self.out.weight, std=config.init_std) if config.init_std else nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def traits(self, plan: Plan) -> Traits:
        return {"logits": Trait("yes", "head"), "several positions from one hidden state": Trait("yes", "head")}

    def logits(self, h_BND: Tensor) -> Tensor:
        """(B, N, V) logits."""
        return full(self.out(h_BND))

    def guided(self, hidden: Hidden) -> Tensor:
        """(B, N, V) logits under guidance.

        The map is affine and the weights of guidance sum to one, so in full precision it is applied once, to guided hidden states:
        ``(1 + w) (W c + b) - w (W n + b) = W ((1 + w) c - w n) + b``.  Coarser numbers would lose in the difference of states.
        """
        exact = hidden.cond_BND.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(hidden.cond_BND.device.type)
        return self.logits(hidden.guided()) if exact else hidden.guided(self.logits)

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """Nats of targets (B, N), or (B, N, m) where m positions share a hidden state."""
        logits = self.logits(h_BND)
        if target.ndim == 3:
            return -logits.log_softmax(-1).gather(-1, target)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        logits = self.guided(hidden)
        if self.never:
            logits = F.pad(logits[..., self.never :], (self.never, 0), value=-torch.inf)
        ids = pick(logits, sampler, moment, draws) if forced is None else forced
        return Drawn(ids, logits)


class Tied(Categorical):
    """The output map is the feed's embedding table, with a bias (MaskGIT) or without one (AiM)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.tied", label="categorical, tied"):
        """``extra`` rows of the table beyond the vocabulary, such as that of [MASK], that may be predicted too; ``bias`` a row."""

        extra: int = 0
        bias: Added[Literal["yes", "no"]] = "yes"

    def __init__(self, config: Config, layout: TokenLayout, feed: Feed) -> None:
        Head.__init__(self)
        self.outputs = single(layout) + config.extra
        # In a list, so that the table stays a parameter of the feed alone.
        self._table = [cast(nn.Embedding, table_of(feed, self.outputs).books[0])]
        self.bias = nn.Parameter(torch.zeros(self.outputs)) if config.bias == "yes" else None

    def logits(self, h_BND: Tensor) -> Tensor:
        return full(F.linear(h_BND, self._table[0].weight[: self.outputs], self.bias))


class Directions(Categorical):
    """One linear map for each of K hidden states; a position's logits are the mean over the states that it is read from.

    NAR's heads (arXiv:2503.10696), one a dimension.  The mean is taken over hidden states (B, N, K, D), which is the same
    because the maps have no bias.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.directions", label="categorical, one a direction"):
        """``states`` K of the net."""

        states: int = 2

        def __post_init__(self) -> None:
            if self.states < 2:
                raise ConfigError(f"head.states={self.states}: must be at least 2; of one state it is Categorical")

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        Head.__init__(self)
        self.out = nn.ModuleList([nn.Linear(width, single(layout), bias=False) for _ in range(config.states)])  # type: ignore[assignment]
        for linear in cast(nn.ModuleList, self.out):
            nn.init.zeros_(cast(nn.Linear, linear).weight)

    def traits(self, plan: Plan) -> Traits:
        return {"logits": Trait("yes", "head"), "hidden states of a slot": Trait(len(cast(nn.ModuleList, self.out)), "head.states")}

    def logits(self, h_BND: Tensor) -> Tensor:
        parts = [linear(h) for linear, h in zip(cast(nn.ModuleList, self.out), h_BND.unbind(2), strict=True)]
        return full(torch.stack(parts).sum(0))


def single(layout: TokenLayout) -> int:
    """The vocabulary of tokens of one codebook.

    Raises:
        LayoutError: latents or several codebooks.
    """
    if not layout.discrete or layout.codebooks != 1:
        raise LayoutError("this head needs discrete tokens of one codebook")
    return layout.vocabulary

"""An inner autoregression over the features of one continuous token (ARINAR, arXiv:2503.02883).

Shapes: B rows, N positions, M = B N tokens, G groups of F features (C = G F channels), D width of the net, E of the inner transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.cache import LayerCache
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.continuous import ContinuousHead
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.mixture import Mixture, MixtureSampler, redrawn
from tokenloom.models.parts.mlp import GELU
from tokenloom.models.parts.nets.transformer import Transformer
from tokenloom.models.parts.norms import AdaLN
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.similarity import Scaled
from tokenloom.models.parts.visibility import Causal, Everything, Visibility
from tokenloom.models.sampling.filters import inverse
from tokenloom.models.sampling.sampler import Moment


class InnerMixture(ContinuousHead):
    """``p(x | h) = prod_g p(x_g | x_1 … x_{g-1}, h)``: a small causal transformer whose norms the hidden state modulates says, group
    after group of features, a mixture of Gaussians."""

    likelihood = "exact"
    settings = MixtureSampler

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config, tag="head.inner_mixture", label="features one by one, mixtures"):
        """``components`` of each mixture; ``together``: neighbouring features F that one mixture is of."""

        width: int = 768
        depth: int = 1
        heads: int = 16
        components: int = 4
        together: int = 1

        def __post_init__(self) -> None:
            for name in ("width", "depth", "heads", "components", "together"):
                if getattr(self, name) < 1:
                    raise ConfigError(f"head.{name}={getattr(self, name)}: must be at least 1")
            if self.width % self.heads:
                raise ConfigError(f"head.heads={self.heads}: must divide head.width={self.width}")

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> InnerMixture:
            channels = ContinuousHead.channels_of(layout)
            if channels % self.together:
                raise LayoutError(f"head.together={self.together}: must divide the {channels} channels of a token")
            return self.construct(channels, width)

    def __init__(self, config: Config, channels: int, width: int) -> None:
        super().__init__()
        self.config, self.groups = config, channels // config.together
        wide = config.width
        self.embed, self.condition = nn.Linear(config.together, wide), nn.Linear(width, wide)
        self.start = nn.Parameter(torch.empty(1, 1, wide))
        self.position = nn.Parameter(torch.empty(1, self.groups, wide))
        # VAR's blocks without cosines (arXiv:2404.02905), which the released code takes.
        blocks = Transformer.Config(
            width=wide,
            depth=config.depth,
            heads=config.heads,
            norm=AdaLN.Config(gamma=1e-5),
            mlp=GELU.Config(),
            attention=Attention.Config(similarity=Scaled(gain=0.25), bias="qv"),
        )
        self.net = Transformer(blocks, TokenLayout(grids=((1, self.groups),), channels=config.together), condition=width)
        self.out = nn.Linear(wide, config.components * (2 * config.together + 1))
        for weight in (self.start, self.position, self.embed.weight, self.condition.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.trunc_normal_(self.out.weight, std=4e-4)
        for layer in (self.embed, self.condition, self.out):
            nn.init.zeros_(layer.bias)

    def traits(self, plan: Plan) -> Traits:
        return {"several positions from one hidden state": Trait("yes", "head")}  # each by numbers of its own

    def first(self, h_MD: Tensor) -> Tensor:
        """(M, 1, E) the entry that predicts the first group."""
        return self.condition(h_MD)[:, None] + self.start

    def run(self, x_MgE: Tensor, h_MD: Tensor, groups: slice, visibility: Visibility, cache: list[LayerCache] | None = None) -> Tensor:
        """Outputs (M, g, …) of entries of these groups."""
        place, vector = torch.arange(self.groups, device=h_MD.device)[None, groups], h_MD[:, None]
        y = self.net.stack(x_MgE + self.position[:, groups], place, visibility, vector, cache)
        return self.out(self.net.norm.last(y, vector))

    def taught(self, h_MD: Tensor, x_MC: Tensor) -> Tensor:
        """(M, G, …) outputs of every group given the true features before it."""
        known = self.embed(x_MC.unflatten(1, (self.groups, -1))[:, :-1].to(h_MD.dtype))
        return self.run(torch.cat([self.first(h_MD), known], 1), h_MD, slice(None), Causal())

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, N) the negative log-likelihood of tokens (B, N, C), in nats; (B, N, K) of K positions from each hidden state."""
        x_MC = target.float().flatten(0, -2)
        h_MD = (h_BND if target.ndim == 3 else h_BND.repeat_interleave(target.shape[2], 1)).flatten(0, 1)
        mixture = Mixture.of(self.taught(h_MD, x_MC), self.config.components)
        return -mixture.log_prob(x_MC.unflatten(1, (self.groups, -1))).sum(1).view(target.shape[:-1])

    def sample(self, hidden: Hidden, own: MixtureSampler, moment: Moment, draws: SampleDraws) -> Tensor:
        """Group after group with a cache."""
        rows, count = hidden.cond_BND.shape[:2]
        states = [h.flatten(0, 1) for h in (hidden.cond_BND, hidden.null_BND) if h is not None]
        h_MD, tokens = torch.cat(states), rows * count
        cache, x, found = self.net.cache(len(h_MD), self.groups, h_MD), self.first(h_MD), []
        for g in range(self.groups):
            output = self.run(x, h_MD, slice(g, g + 1), Everything(), cache)[:, 0]
            mixture = Mixture.of(output, self.config.components)
            temperature, weight = own.at(g, self.groups, hidden.weight)
            samples = 1 if hidden.null_BND is None else own.candidates
            u = draws.uniform(f"head.{g}", moment.step, count, samples).flatten(0, 1)
            noise = draws.normal(f"head.{g}.noise", moment.step, count, samples, self.config.together).flatten(0, 1)
            if hidden.null_BND is None:
                feature = mixture.draw(self.pick(mixture.over().log_weight, u), noise, temperature)[:, 0]
            else:
                chosen = draws.uniform(f"head.{g}.chosen", moment.step, count).flatten(0, 1)
                given, null = mixture.rows(slice(tokens)), mixture.rows(slice(tokens, None))
                feature = redrawn(given, null, weight, temperature, u, noise, chosen, self.pick)
            found.append(feature)
            x = self.embed(feature.to(h_MD.dtype))[:, None].repeat(len(states), 1, 1)
        return torch.cat(found, 1).unflatten(0, (rows, count))

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One index of the last axis for each number (…): that of logits (…, K), or of logits (…, 1, K) for numbers (…, S)."""
        return inverse(logits.expand(*uniform.shape, logits.shape[-1]), uniform)

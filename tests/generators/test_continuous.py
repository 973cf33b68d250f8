"""Continuous tokens: any generator with an order and a feed runs on latents when its head can, or says why it does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ROWS, spec_of

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, LayoutError, TokenLayout, Tokens
from tokenloom.models.generators.group_denoiser import GroupDenoiser
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import Feed
from tokenloom.models.parts.heads.base import Head, Predict
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.orders import Masked
from tokenloom.models.parts.orders.sizes import Curve
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Moment, Sampler

LATENTS = TokenLayout(grids=((4, 4),), channels=3)
#: Those that cannot run on latents, each with a word of its reason.
REFUSED = {
    "coarse_to_fine": "discrete",
    "discrete_interpolants": "discrete",
    "vq_ddm": "discrete",
    "var": "tokenizer",
    "flexvar": "tokenizer",
    "hmar": "tokenizer",
    "infinity": "tokenizer",
    "mvar": "tokenizer",
    "srdd": "tokenizer",
    "nfig_ar": "tokenizer",
    "oar": "logits",
    "far_frequency": "stage",
    "flowar": "several scales",
    "himar": "two grids",
}


class Gaussian(Head):
    """A normal distribution of each channel, of unit variance around a linear map of the hidden state."""

    likelihood = "exact"

    @dataclass(frozen=True, kw_only=True)
    class Config(Head.Config):
        states: int = 1

        def build(self, layout: TokenLayout, width: int, feed: Feed) -> Gaussian:
            return Gaussian(self, layout, width)

    def __init__(self, config: Config, layout: TokenLayout, width: int) -> None:
        super().__init__()
        self.states, self.out = config.states, nn.Linear(width, layout.channels)

    def traits(self, plan: Plan) -> Traits:
        return {
            "several positions from one hidden state": Trait("yes", "head"),
            "hidden states of a slot": Trait(self.states, "head.states"),
        }

    def mean(self, h: Tensor) -> Tensor:
        return self.out(h.sum(2) if h.ndim == 4 else h)

    def loss(self, h_BND: Tensor, target: Tensor, draws: Draws | None = None) -> Tensor:
        mean = self.mean(h_BND)
        mean = mean.unsqueeze(2) if target.ndim == 4 else mean  # several positions of one hidden state
        return 0.5 * ((target - mean).square() + math.log(2 * math.pi)).sum(-1)

    def draw(
        self,
        hidden: Hidden,
        sampler: Sampler,
        moment: Moment,
        draws: SampleDraws,
        forced: Tensor | None = None,
        predict: Predict | None = None,
    ) -> Drawn:
        mean = hidden.guided(self.mean)
        return Drawn(mean + draws.normal("head", moment.step, *mean.shape[1:]) if forced is None else forced)


class Half(Curve):
    """Half of the positions, whatever is drawn."""

    def masked(self, t: float) -> float:
        return 0.5


def on_latents(name: str) -> Any:
    """The recipe's config with a Gaussian head; groups are taken in order where the recipe would choose by confidence, and a masked
    order knows half of the positions: a recipe's own share may mask all of so few, and then nothing is seen."""
    recipe = registry.get(name)
    config: Any = recipe.config(recipe.tiny)
    names = {f.name for f in fields(config)} if is_dataclass(config) else set()
    if "head" in names:
        config = replace(config, head=Gaussian.Config(states=2 if name == "nar" else 1))
    order = getattr(config, "order", None)
    if getattr(order, "choice", None) is not None and name != "oar":
        config = replace(config, order=replace(order, choice=None))
    if isinstance(order, Masked):
        config = replace(config, order=replace(config.order, curve=Half()))
    return config


def latents(rows: int = ROWS) -> Batch:
    data = torch.randn(rows, LATENTS.length, LATENTS.channels, generator=torch.Generator().manual_seed(0))
    return Batch(tokens=Tokens(data, LATENTS), conditions=Labels(torch.arange(rows) % 3))


@pytest.mark.parametrize("name", registry.names("generator"))
def test_a_generator_runs_on_latents_or_says_why_not(name: str) -> None:
    torch.manual_seed(0)
    given = {**spec_of("kl").given, "tokenizer": spec_of("kl").config(), "classes": 3}
    if name in REFUSED:
        with pytest.raises((ConfigError, LayoutError), match=REFUSED[name]):
            on_latents(name).build(layout=LATENTS, **given)
        return
    model = on_latents(name).build(layout=LATENTS, **given)
    if not isinstance(model, GroupGenerator | GroupDenoiser):
        pytest.skip("holds its own module, made for latents: the contracts of all methods say that it runs")
    batch, optimizer = latents(), torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(2):  # the second step: some parts start at zero and pass no gradient on until they have moved
        optimizer.zero_grad()
        loss = model.losses(batch, "main", Draws.whole(0, step, ROWS, 2))["loss"]
        loss.backward()
        optimizer.step()
    assert bool(loss.isfinite())
    embedding = [p.grad for n, p in model.named_parameters() if n.startswith(("feed.table.map", "feed.embed", "embed"))]
    assert embedding
    assert all(g is not None and bool(g.abs().sum() > 0) for g in embedding), "the latents are seen"
    model.eval()
    sampler = replace(model.sampler.edited(guidance=0.5), top_k=0, top_p=1.0)
    labels = Labels(torch.arange(3))
    drawn = model.generate(labels, sampler, SampleDraws.of(0, 0, 3))
    assert drawn.data.shape == (3, LATENTS.length, LATENTS.channels)
    assert bool(drawn.data.isfinite().all())
    alone = model.generate(labels.part(1, 2), sampler, SampleDraws.of(0, 1, 2))
    torch.testing.assert_close(alone.data[0], drawn.data[1], atol=1e-4, rtol=1e-4)


def test_most_generators_run_on_latents() -> None:
    assert len(REFUSED) < len(registry.names("generator")) / 2

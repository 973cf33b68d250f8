"""Toys whose sequences can all be listed: their likelihood by teacher forcing, and how far samples are from it.

All sequences of four tokens of three codes.  Seeds are fixed; the bound is a quantile of the chi-square distribution that a right
sampler passes once in two million draws.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from tokenloom.models.core import registry
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.filters import keep
from tokenloom.models.sampling.sampler import Constant, Linear, Moment, Sampler

CODES, LAYOUT = 3, TokenLayout(grids=((2, 2),), vocabulary=3)
LARGER = TokenLayout(grids=((4, 4),), vocabulary=8)
LENGTH, ROWS = LAYOUT.length, 1500
PLAIN = Sampler()
SAMPLERS = {
    "plain": PLAIN,
    "guided_top_p": Sampler(guidance=Linear(value=1.0), temperature=Constant(value=1.3), top_p=0.9),
    "guided_top_k": Sampler(guidance=Constant(value=0.5), temperature=Constant(value=0.8), top_k=2),
}


def made(name: str, seed: int = 1, scale: float = 0.4, layout: TokenLayout = LAYOUT) -> GroupGenerator:
    """A tiny model of a recipe whose tokens depend on each other, with another one to draft for it."""
    recipe = registry.get(name)
    torch.manual_seed(seed)
    model = cast(GroupGenerator, cast(Any, recipe.config(recipe.tiny)).build(layout, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape))
    return model.eval()


def pair(name: str, **given: Any) -> GroupGenerator:
    model = made(name, **given)
    model.use_draft_model(made("raster", seed=9, layout=model.layout))
    return model


@torch.no_grad()
def ignorant(name: str, seed: int = 1) -> GroupGenerator:
    """A model without weights: every token is equally likely, whatever came before."""
    model = made(name, seed=seed, scale=0.0, layout=LARGER)
    for p in model.parameters():
        p.zero_()
    return model


@torch.no_grad()
def exact(model: GroupGenerator, label: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """All sequences and their probabilities (float64) under a sampler, by teacher forcing."""
    every = torch.tensor(list(product(range(CODES), repeat=LENGTH)))
    asked = Labels(torch.full((len(every),), label))
    plan = model.order.decode(model.layout, len(every), SampleDraws.of(0, 0, len(every)))
    h, null = (model(every, each, plan) for each in (asked, model.condition.null(asked)))
    moments = [Moment(i, LENGTH, i, i + 1, LENGTH) for i in range(LENGTH)]
    w, t = (torch.tensor([s.on(m) for m in moments])[:, None] for s in (sampler.guidance, sampler.temperature))
    head = cast(Any, model.head)
    logits = ((1 + w) * head.logits(h) - w * head.logits(null)) / t
    p = keep(logits, sampler.top_k, sampler.top_p).softmax(-1).double()
    taken = every.gather(1, plan.sequence_BL.expand(len(every), -1))
    return every, p.gather(-1, taken.unsqueeze(-1)).squeeze(-1).prod(1)


def surprise(ids: Tensor, every: Tensor, p: Tensor) -> float:
    """Pearson's statistic over the quantile that one in two million draws exceeds: above 1 is another distribution.

    Rare sequences are counted together.
    """
    index = (every == ids[:, None]).all(-1).long().argmax(1)
    found, expected = torch.bincount(index, minlength=len(p)).double(), p * len(ids)
    often = expected >= 5
    pairs = [(found[often], expected[often]), (found[~often].sum()[None], expected[~often].sum()[None])]
    found, expected = (torch.cat(parts) for parts in zip(*pairs))
    found, expected = found[expected > 1e-9], expected[expected > 1e-9]
    free = max(1, len(expected) - 1)
    # Wilson and Hilferty: the quantile of a chi-square distribution from that of the normal one.
    quantile = free * (1 - 2 / (9 * free) + 4.9 * (2 / (9 * free)) ** 0.5) ** 3
    return float(((found - expected) ** 2 / expected).sum()) / quantile


def drawn(model: GroupGenerator, decoder: Decoder | None, sampler: Sampler, rows: int = ROWS, seed: int = 5) -> Tensor:
    labels = Labels(torch.ones(rows, dtype=torch.int64))
    return model.generate(labels, replace(sampler, decoder=decoder), SampleDraws.of(seed, 0, rows)).ids

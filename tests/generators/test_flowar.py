"""FlowAR: a scale is made from the scales before it alone, and decoding with a cache is the training's pass."""

from __future__ import annotations

import pytest
import torch

from tokenloom.models.core import registry
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.core.protocols import Batch, Labels, Tokens
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.visibility import EVERYTHING
from tokenloom.models.zoo.generators.flowar.module import FlowAR

LAYOUT = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), channels=3)


def small() -> FlowAR:
    torch.manual_seed(0)
    recipe = registry.get("flowar")
    model: FlowAR = recipe.config(dict(recipe.tiny)).build(layout=LAYOUT, classes=3)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def test_a_scale_hangs_on_the_scales_before_it_alone() -> None:
    model, labels, draw = small(), Labels(torch.arange(2)), torch.Generator().manual_seed(0)
    data = torch.randn(2, 21, 3, generator=draw)
    h = model(data, labels)
    for scale, (start, stop) in enumerate(((0, 1), (1, 5), (5, 21))):
        changed = data.clone()
        changed[:, start:stop] += 1
        same = (model(changed, labels) - h).abs().amax((0, 2)) < 1e-5
        assert same[:stop].all(), "neither the scales before nor itself"
        assert not same[stop:].any(), scale
    velocity = model.head(data, torch.full((2, 21), 0.3), h, model.every)
    changed = torch.cat([data[:, :5] + 1, data[:, 5:]], 1)
    torch.testing.assert_close(model.head(changed, torch.full((2, 21), 0.3), h, model.every)[:, 5:], velocity[:, 5:])


@torch.no_grad()
def test_cached_decoding_is_the_training_pass() -> None:
    model, labels = small(), Labels(torch.arange(2))
    data = model.generate(labels, model.sampler, SampleDraws.of(0, 0, 2)).data
    cond: Conditioned = model.condition(labels)
    cache, x, found = model.net.cache(2, 21, cond.vector_BD), model._begin(cond), []
    for scale, part in enumerate(data.split([1, 4, 16], 1)):
        start = (0, 1, 5)[scale]
        found.append(model._states(x, model.every[start : start + part.shape[1]], cond, EVERYTHING, cache))
        x = model.embed(model.grown(part, scale + 1)) if scale < 2 else x
    torch.testing.assert_close(torch.cat(found, 1), model(data, labels), atol=1e-5, rtol=1e-5)


def test_scales_weigh_by_their_positions() -> None:
    model, draw = small().train(), torch.Generator().manual_seed(0)
    model.head.out.weight.data.zero_()
    model.head.out.bias.data.zero_()
    data = torch.randn(4, 21, 3, generator=draw)
    loss = model.losses(Batch(tokens=Tokens(data, LAYOUT), conditions=Labels(torch.arange(4) % 3)), "main", Draws.whole(0, 0, 4))["loss"]
    # A velocity of zero errs by data less noise, of variance two at each of 21 positions beside the 16 of the last scale.
    assert float(loss.detach()) == pytest.approx(2 * 21 / 16, rel=0.35)

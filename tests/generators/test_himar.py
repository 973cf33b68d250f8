"""Hi-MAR: pivots are drawn without dense tokens, dense tokens from the pivots' hidden states, and what is known stays."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tokenloom.models.core import registry
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.core.protocols import Labels
from tokenloom.models.zoo.generators.himar.module import HiMAR

LAYOUT = TokenLayout(grids=((2, 2), (4, 4)), channels=3)


def small() -> HiMAR:
    torch.manual_seed(0)
    recipe = registry.get("himar")
    model: HiMAR = recipe.config(dict(recipe.tiny)).build(layout=LAYOUT, classes=3)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def test_pivots_see_no_dense_token_and_dense_tokens_the_states_of_pivots() -> None:
    model, draw = small(), torch.Generator().manual_seed(0)
    data = torch.randn(2, 20, 3, generator=draw)
    other = torch.cat([data[:, :4], torch.randn(2, 16, 3, generator=draw)], 1)
    masked, vector = torch.tensor([[True, False, True, True]]).expand(2, -1), model.condition(Labels(torch.arange(2))).vector_BD
    first = model.pivot_states(data, masked, vector)
    torch.testing.assert_close(model.pivot_states(other, masked, vector), first)
    changed = torch.cat([data[:, :1] + 1, data[:, 1:]], 1)  # a masked pivot
    torch.testing.assert_close(model.pivot_states(changed, masked, vector), first)
    assert not torch.allclose(model.pivot_states(torch.cat([data[:, :1], data[:, 1:] + 1], 1), masked, vector), first)
    # Training gives states at masked pivots, of rows that are given them, and a learned vector elsewhere.
    guide = model.guides(first, masked, torch.tensor([True, False]))
    none = model.embed_pivot(model.no_pivot)
    assert torch.equal(guide[1], none)
    assert torch.equal(guide[0, 1], none[1])
    torch.testing.assert_close(guide[0, 0], model.embed_state(first[0, 0]))
    hidden = torch.ones(2, 16, dtype=torch.bool)
    seen = [model.dense_states(data, hidden, each, vector) for each in (guide, guide + 1)]
    assert not torch.allclose(*seen)
    torch.testing.assert_close(model.dense_states(other, hidden, guide, vector), seen[0])


@torch.no_grad()
def test_sampling_keeps_what_is_known_and_fills_all() -> None:
    model, labels = small(), Labels(torch.arange(2))
    steps = list(model.walk(labels, model.sampler, SampleDraws.of(0, 0, 2)))
    assert [int(step.unknown[0].sum()) for step, _ in steps] == [4, 2, 16, 11]
    for (_, before), (step, after) in pairwise(steps[2:]):
        known = ~step.unknown.unsqueeze(-1)
        assert torch.equal(after[:, 4:][known.expand_as(after[:, 4:])], before[:, 4:][known.expand_as(before[:, 4:])])
    assert torch.equal(steps[-1][1][:, :4], steps[1][1][:, :4]), "pivots stay"
    assert bool((steps[-1][1] != 0).all())


def test_the_dense_loss_counts_masked_positions_alone() -> None:
    model, draw = small(), torch.Generator().manual_seed(0)
    h, x = torch.randn(2, 16, 32, generator=draw), torch.randn(2, 16, 3, generator=draw)
    masked = torch.arange(16) < torch.tensor([[4], [16]])
    draws = [Draws.whole(0, 0, 2) for _ in range(3)]
    whole = model.dense.loss(h, x, torch.ones(2, 16, dtype=torch.bool), draws[0])
    part = model.dense.loss(h, x, masked, draws[1])
    none = model.dense.loss(h, x, torch.zeros(2, 16, dtype=torch.bool), draws[2])
    torch.testing.assert_close(part[1], whole[1])
    assert bool(part[0] < whole[0])
    assert not bool(none.any())


def test_one_grid_is_refused() -> None:
    with pytest.raises(LayoutError, match="two grids"):
        registry.get("himar").config({}).build(layout=TokenLayout(grids=((4, 4),), channels=3), classes=3)  # type: ignore[attr-defined]

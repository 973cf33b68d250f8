"""Laws of orders: groups partition the positions, one rule gives the published masks, draws do not depend on workers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.orders import Diagonals, Random, Raster, Scales
from tokenloom.models.parts.visibility import Groups

grids = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)


@given(grids, st.integers(1, 2), st.integers(1, 7), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_groups_partition_the_positions(sizes: list[tuple[int, int]], frames: int, group: int, seed: int) -> None:
    layout = TokenLayout(grids=tuple(sizes), vocabulary=8, frames=frames)
    for order in (Raster(), Scales(), Diagonals(), Random(size=group)):
        for plan in (order.plan(layout, Draws.whole(seed, 0, 3)), order.decode(layout, 3, SampleDraws.of(seed, 0, 3))):
            assert sum(plan.sizes) == layout.length
            assert torch.equal(plan.sequence_BL.sort(1).values, torch.arange(layout.length).expand_as(plan.sequence_BL))
            members = torch.cat([plan.members(g) for g in range(plan.groups)], dim=1)
            assert torch.equal(members, plan.sequence_BL)
            for g in range(plan.groups):
                assert bool((plan.group_BL.gather(1, plan.members(g)) == g).all())


def test_raster_mask_is_lower_triangular() -> None:
    plan = Raster().plan(TokenLayout(grids=((3, 4),), vocabulary=8))
    assert torch.equal(Groups(plan.group_BL, plan.group_BL, plan.window).seen_BST[0], torch.ones(12, 12).tril().bool())


def test_scales_mask_is_block_causal_by_scale() -> None:
    plan = Scales().plan(TokenLayout(grids=((1, 1), (2, 2), (3, 3)), vocabulary=8))
    level = torch.cat([torch.full((n,), i) for i, n in enumerate((1, 4, 9))])  # VAR: attend where level_i >= level_j
    assert torch.equal(Groups(plan.group_BL, plan.group_BL, plan.window).seen_BST[0], level[:, None] >= level[None, :])


def test_markov_window_hides_all_but_the_nearest_scales_and_keeps_the_prefix() -> None:
    plan = Scales(window=1).plan(TokenLayout(grids=((1, 1), (2, 2), (3, 3)), vocabulary=8))
    key = torch.cat([torch.tensor([[-1]]), plan.group_BL], dim=1)
    seen = Groups(plan.group_BL, key, plan.window).seen_BST[0]
    assert seen[-1].tolist() == [True, False] + [True] * 13


def test_diagonals_need_two_n_minus_one_steps() -> None:
    plan = Diagonals().plan(TokenLayout(grids=((16, 16),), vocabulary=8))
    assert plan.groups == 31  # NAR: 2n - 1
    position = TokenLayout(grids=((16, 16),), vocabulary=8).positions
    assert torch.equal(plan.group_BL[0], position[:, 2] + position[:, 3])


@pytest.mark.parametrize("size", [1, 4])
def test_random_order_draws_are_sliced_from_the_global_batch(size: int) -> None:
    layout, order = TokenLayout(grids=((4, 4),), vocabulary=8), Random(size=size)
    whole = order.plan(layout, Draws.whole(7, 3, 6)).sequence_BL
    parts = [order.plan(layout, Draws(7, 3, 10, start, stop, 6)).sequence_BL for start, stop in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, order.plan(layout, Draws.whole(7, 4, 6)).sequence_BL)

"""What orders must say: sizes of steps, annealing, regions, patches, masked shares, Halton's evenness."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import LayoutError, TokenLayout
from tokenloom.models.parts.orders import (
    Annealed,
    Arccos,
    CosineCurve,
    Count,
    Curve,
    Even,
    Halton,
    Masked,
    Patches,
    Random,
    Regions,
    SomeScales,
    Steps,
    Straight,
    TruncatedNormal,
)
from tokenloom.models.zoo.generators.flexvar.order import TEN, THIRTEEN, DrawnScales

SQUARE = TokenLayout(grids=((8, 8),), vocabulary=4)


@given(st.integers(1, 300), st.integers(1, 80), st.sampled_from([CosineCurve(), Arccos(), Straight()]), st.sampled_from(["up", "down"]))
@settings(max_examples=200, deadline=None)
def test_steps_cut_any_length(length: int, count: int, curve: Curve, rounding: str) -> None:
    sizes = Steps(count=count, curve=curve, rounding=rounding).cut(length)  # type: ignore[arg-type]
    assert len(sizes) == min(count, length)
    assert min(sizes) >= 1
    assert sum(sizes) == length


def test_a_cosine_takes_few_positions_first() -> None:
    sizes = Steps(count=8).cut(256)
    assert sizes == tuple(sorted(sizes))
    assert sizes[0] == 5  # 256 - floor(256 cos(pi / 16))
    assert Even(size=3).cut(8) == (3, 3, 2)


def test_rar_anneals_from_random_orders_to_raster() -> None:
    order, raster = Annealed(start=0.25, end=0.75), torch.arange(64)
    shares = []
    for progress in (0.0, 0.2, 0.5, 0.75, 0.99):
        plan = order.plan(SQUARE, Draws.whole(3, int(progress * 1000), 400, steps=1000))
        assert torch.equal(plan.sequence_BL.sort(1).values, raster.expand(len(plan.sequence_BL), -1))
        shares.append(float((plan.sequence_BL != raster).any(1).float().mean()))
    assert shares[:2] == [1, 1]
    assert 0.4 < shares[2] < 0.6
    assert shares[3:] == [0, 0]
    assert torch.equal(order.decode(SQUARE, 5, None).sequence_BL[0], raster)


def test_par_takes_distant_tokens_together() -> None:
    plan = Regions(across=2).plan(TokenLayout(grids=((24, 24),), vocabulary=4))
    assert plan.groups == 4 + (576 - 4) // 4 == 147  # the published number of steps
    position = TokenLayout(grids=((24, 24),), vocabulary=4).positions
    assert plan.sizes[:4] == (1,) * 4
    assert position[plan.sequence_BL[0, :4], 2:].tolist() == [[0, 0], [0, 12], [12, 0], [12, 12]]
    for group in range(4, plan.groups):
        row, column = position[plan.members(group)[0], 2], position[plan.members(group)[0], 3]
        assert len(set((row % 12).tolist())) == len(set((column % 12).tolist())) == 1
        assert len({(r // 12, c // 12) for r, c in zip(row.tolist(), column.tolist())}) == 4
    with pytest.raises(LayoutError, match=r"order\.across=3"):
        Regions(across=3).plan(SQUARE)


def test_npp_shortens_the_sequence_and_ends_in_raster() -> None:
    order = Patches(sides=(4, 2, 1), until=(0.3, 0.6))
    groups = [order.plan(SQUARE, Draws.whole(0, step, 2, steps=10)).groups for step in (0, 2, 3, 5, 6, 9)]
    assert groups == [4, 4, 16, 16, 64, 64]
    assert order.decode(SQUARE, 2).sizes == (1,) * 64
    plan = order.of_side(SQUARE, 4)
    assert plan.members(1)[0].tolist() == [r * 8 + c for r in range(4) for c in range(4, 8)]
    with pytest.raises(ConfigError, match=r"order\.sides"):
        Patches(sides=(2, 1), until=())


@pytest.mark.parametrize("seen", [0.0, 0.1])
def test_masked_loss_is_a_mean_over_the_whole_batch(seen: float) -> None:
    order = Masked(seen_weight=seen)
    whole = order.plan(SQUARE, Draws.whole(5, 2, 6))
    parts = [order.plan(SQUARE, Draws(5, 2, 1, a, b, 6)) for a, b in ((0, 2), (2, 3), (3, 6))]
    for name in ("known_BL", "weight_BL"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert whole.known_BL is not None
    assert whole.weight_BL is not None
    torch.testing.assert_close(whole.weight_BL.sum(1).mean(), torch.tensor(1.0))
    ratio = whole.weight_BL[whole.known_BL].mean() / whole.weight_BL[~whole.known_BL].mean()
    torch.testing.assert_close(ratio, torch.tensor(seen))


def test_masked_share_follows_the_curve() -> None:
    plan = Masked(curve=CosineCurve()).plan(TokenLayout(grids=((16, 16),), vocabulary=4), Draws.whole(1, 0, 4000))
    assert plan.known_BL is not None
    masked = (~plan.known_BL).float().mean(1)
    assert float(masked.min()) > 0
    torch.testing.assert_close(masked.mean(), torch.tensor(2 / torch.pi), atol=0.02, rtol=0)  # mean of cos(pi u / 2)
    assert bool(plan.known_BL[0].any())


def test_any_prefix_of_halton_is_even() -> None:
    layout = TokenLayout(grids=((16, 16),), vocabulary=4)
    sequence = Halton().sequence(layout, 1, None)[0]
    assert torch.equal(sequence.sort().values, torch.arange(256))
    for prefix in (16, 32, 64, 128):
        place = layout.positions[sequence[:prefix], 2:] // 8
        counts = torch.bincount(place[:, 0] * 2 + place[:, 1], minlength=4)
        assert int(counts.max() - counts.min()) <= max(2, prefix // 16), counts


def test_halton_trains_on_an_arccosine_and_may_start_anywhere_in_its_sequence() -> None:
    recipe, layout = registry.get("halton_maskgit"), TokenLayout(grids=((8, 8),), vocabulary=4)
    known_BL = recipe.config(recipe.tiny).order.plan(layout, Draws.whole(0, 0, 16000)).known_BL  # type: ignore[attr-defined]
    few = ((~known_BL).float().mean(1) < 0.5).float().mean()
    expected = 1 - math.cos(math.pi / 2 * 31.5 / 64)  # of a cosine 0.33
    torch.testing.assert_close(few, torch.tensor(expected), atol=0.015, rtol=0)
    order = recipe.config({**recipe.tiny, "start": "rolled"}).order  # type: ignore[attr-defined]
    whole = Halton().sequence(layout, 1, None)[0].tolist()
    sequences = order.decode(layout, 6, SampleDraws.of(3, 0, 6)).sequence_BL.tolist()
    starts = [whole.index(sequence[0]) for sequence in sequences]
    assert sequences == [whole[start:] + whole[:start] for start in starts]
    assert len(set(starts)) > 2
    assert order.decode(layout, 1, SampleDraws.of(3, 4, 5)).sequence_BL.tolist() == sequences[4:5]


def test_in_painting_takes_what_is_known_first() -> None:
    keep = torch.zeros(64, dtype=torch.bool)
    keep[[3, 40, 63]] = True
    for order in (Random(decoding=Steps(count=6)), Masked(decoding=Steps(count=6), visit=Halton())):
        plan = order.decode(SQUARE, 4, SampleDraws.of(0, 0, 4))
        around = order.around(plan, keep)
        assert around.sizes[0] == 3
        assert sum(around.sizes) == 64
        assert around.sizes[1:] == Steps(count=6).cut(61), "as many steps for what is unknown, along the same curve"
        assert order.around(plan, keep, Count(count=3)).sizes[1:] == Steps(count=3).cut(61)
        for row, before in zip(around.sequence_BL, plan.sequence_BL):
            assert set(row[:3].tolist()) == {3, 40, 63}
            assert row[3:].tolist() == [i for i in before.tolist() if i not in (3, 40, 63)]


def test_a_step_count_is_refused_where_the_order_fixes_it() -> None:
    for order in (Regions(), SomeScales()):
        with pytest.raises(ConfigError, match=r"sample\.steps"):
            order.decode(SQUARE, 1, None, Even(size=2))


@pytest.mark.parametrize("name", ["mar", "ear", "tokenbridge_ar"])
def test_mar_and_its_relatives_mask_one_ratio_a_batch_rounded_up(name: str) -> None:
    """``ceil(rate L)`` positions, the rate from a normal around 1 of deviation 0.25, cut to [0.7, 1]."""
    order = registry.get(name).config({}).order  # type: ignore[attr-defined]
    assert isinstance(order, Masked)
    layout, seen = TokenLayout(grids=((5, 5),), vocabulary=4), []
    for step in range(60):
        known = order.plan(layout, Draws.whole(1, step, 6)).known_BL
        assert known is not None
        rate = TruncatedNormal().masked(float(Draws.whole(1, step, 6).shared_uniform(1)))
        assert (~known).sum(1).tolist() == [math.ceil(rate * 25)] * 6
        seen.append(rate)
    assert 0.7 <= min(seen) < 0.75
    assert 0.8 < sum(seen) / 60 < 0.9


def test_flexvar_draws_its_sequence_of_grids() -> None:
    """Two small sides, five of 3 … 10, two of 11 … 15 and the last; some are left out, and none is longer than 680 positions."""
    layout = TokenLayout(grids=tuple((n, n) for n in range(1, 17)), vocabulary=4)
    order, counts, sides = DrawnScales(), Counter[int](), Counter[int]()
    for step in range(600):
        chosen = [i + 1 for i in order.sequence(layout, Draws.whole(0, step, 3))]
        assert chosen == sorted(set(chosen))
        assert chosen[:2] == [1, 2]
        assert sum(n * n for n in chosen) <= 680
        counts[len(chosen)] += 1
        sides.update(chosen)
        if len(chosen) == 10 and tuple(chosen) != TEN:
            assert sum(3 <= n <= 10 for n in chosen) == 5
            assert sum(11 <= n <= 15 for n in chosen) == 2
    assert set(sides) == set(range(1, 17))  # also 7, 9, 11, 12, 14, 15, which the schedule of ten steps has not
    assert max(counts) == 10
    assert min(counts) <= 7
    assert order.plan(layout, Draws.whole(0, 5, 8)).sizes == tuple(
        layout.scale_sizes[i] for i in order.sequence(layout, Draws.whole(0, 5, 3))
    )  # the same for any batch


def test_flexvar_decodes_in_any_number_of_steps() -> None:
    layout = TokenLayout(grids=tuple((n, n) for n in range(1, 17)), vocabulary=4)
    order = DrawnScales()

    def taken(sizes: Count | None) -> tuple[int, ...]:
        return tuple(int(size**0.5) for size in order.decode(layout, 1, None, sizes).sizes)

    assert taken(None) == TEN
    assert taken(Count(count=13)) == THIRTEEN
    for count in range(3, 16):
        found = taken(Count(count=count))
        assert len(set(found)) == count
        assert (found[0], found[-1]) == (1, 16)
    asked = TokenLayout(grids=tuple((n, n) for n in (*THIRTEEN, 23, 32)), vocabulary=4)  # a resolution never trained on: all are taken
    assert order.decode(asked, 1).sizes == asked.scale_sizes
    for count in (1, 17):
        with pytest.raises(ConfigError, match=r"sample\.steps"):
            order.decode(layout, 1, None, Count(count=count))


def test_flexvar_leaves_out_inner_scales_only() -> None:
    layout = TokenLayout(grids=((1, 1), (2, 2), (3, 3), (4, 4)), vocabulary=4)
    seen = set()
    for step in range(40):
        plan = SomeScales(drop=0.5).plan(layout, Draws.whole(0, step, 3))
        assert plan.sizes[0] == 1
        assert plan.sizes[-1] == 16
        seen.add(plan.sizes)
    assert seen == {(1, 16), (1, 4, 16), (1, 9, 16), (1, 4, 9, 16)}
    assert SomeScales(drop=0.5).decode(layout, 1).sizes == (1, 4, 9, 16)

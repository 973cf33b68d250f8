"""Defining properties: any orders in bursts, merged slots, coarse to fine, next frequencies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from small_generators import CLASSES, PLAIN, grid, small, some

from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.decoders.rejection import Rejection, RejectionSession
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine
from tokenloom.models.zoo.generators.sigma_gpt.module import AnyOrder
from tokenloom.models.zoo.generators.token_shuffle.feed import Merged

# sigma-GPT


def test_a_group_is_predicted_from_known_tokens_alone() -> None:
    layout = grid(3)
    model = small("sigma_gpt", layout, scale=0.3)
    assert isinstance(model, AnyOrder)
    ids, labels = some(layout, 4)
    plan = Plan(torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i)) for i in range(4)]), (2, 1, 4, 2))
    steps = list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows), forced=ids, plan=plan))
    decoded = torch.cat([s.h_BnD for s in steps], dim=1)
    torch.testing.assert_close(decoded, model(ids, labels, plan), atol=2e-5, rtol=1e-5)
    # Entry 5 belongs to the third group: it is what it is with the first three entries known and any order after them.
    alone = plan.sequence_BL[:, [0, 1, 2, 5, 3, 4, 6, 7, 8]]
    one_by_one = model(ids, labels, Plan(alone, (1,) * 9))
    torch.testing.assert_close(decoded[:, 5], one_by_one[:, 3], atol=2e-5, rtol=1e-5)
    assert not torch.allclose(decoded[:, 5], model(ids, labels, Plan(plan.sequence_BL, (1,) * 9))[:, 5], atol=1e-3)


@pytest.mark.parametrize("burst", [None, Rejection(), Rejection(orders=2)])
def test_any_subset_may_be_given(burst: Rejection | None) -> None:
    layout = grid(3)
    model = small("sigma_gpt", layout, scale=0.3)
    assert isinstance(model, AnyOrder)
    model.config = replace(model.config, burst=burst)
    ids, labels = some(layout, 6)
    keep = torch.tensor([False, True, False, False, True, False, True, False, True])
    result = [model.inpaint(Tokens(x, layout), keep, labels, PLAIN, SampleDraws.of(0, 0, labels.rows)).ids for x in (ids, (ids + 1) % 16)]
    assert torch.equal(result[0][:, keep], ids[:, keep])
    assert not torch.equal(result[0][:, ~keep], result[1][:, ~keep])  # what is given later in raster order is seen too


@pytest.mark.parametrize("burst", [None, Rejection(), Rejection(orders=2)])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_nothing_is_drawn_where_everything_is_given(burst: Rejection | None, weight: float) -> None:
    layout = grid(3)
    model = small("sigma_gpt", layout, scale=0.3)
    assert isinstance(model, AnyOrder)
    model.config = replace(model.config, burst=burst)
    ids, labels = some(layout, 3)
    sampler = replace(PLAIN, guidance=replace(PLAIN.guidance, value=weight))
    done, trace = model.decode(labels, sampler, SampleDraws.of(0, 0, 3), given=ids, keep_L=torch.ones(9, dtype=torch.bool))
    assert torch.equal(done.ids, ids)
    assert trace.steps == (1 if burst is None else 0)


def test_bursts_are_distributed_as_one_by_one_decoding() -> None:
    layout, rows = TokenLayout(grids=((1, 3),), vocabulary=3), 12_000
    model = small("sigma_gpt", layout, scale=0.5)
    assert isinstance(model, AnyOrder)
    orders = torch.tensor(list(permutations(range(3))))
    worlds = torch.tensor(list(product(range(3), repeat=3)))
    label = Labels(torch.zeros(len(worlds), dtype=torch.int64))
    exact = torch.zeros(len(worlds))
    with torch.no_grad():
        for order in orders:
            plan = Plan(order[None], (1, 1, 1))
            exact += (-model.nll(worlds, label, plan, None).sum(1)).exp() / len(orders)
        together = Plan(torch.arange(3)[None], (3,))
        blind = (-model.nll(worlds, label, together, None).sum(1)).exp()
    assert float(exact.sum()) == pytest.approx(1, abs=1e-4)
    steps = list(
        Rejection().steps(RejectionSession(model, Labels(torch.zeros(rows, dtype=torch.int64)), PLAIN, SampleDraws.of(1, 0, rows)))
    )
    found = Counter(map(tuple, steps[-1].data.tolist()))
    drawn = torch.tensor([found[tuple(w)] / rows for w in worlds.tolist()])
    assert float((drawn - exact).abs().sum() / 2) < 0.03
    assert float((blind - exact).abs().sum() / 2) > 0.1  # drawing all at once without rejection is something else


def test_a_burst_settles_at_least_two_tokens_and_all_when_tokens_are_independent() -> None:
    layout = grid(4)
    labels = Labels(torch.arange(5) % CLASSES)
    model = small("sigma_gpt", layout, scale=0.4)
    assert isinstance(model, AnyOrder)
    known = [s.known_B for s in Rejection().steps(RejectionSession(model, labels, PLAIN, SampleDraws.of(0, 0, labels.rows)))]
    before = torch.zeros_like(known[0])
    for now in known:
        assert bool((now >= (before + 2).clamp_max(16)).all())
        before = now
    assert 1 < len(known) <= 8
    free = small("sigma_gpt", layout)  # a fresh head knows nothing: all codes are alike everywhere
    assert isinstance(free, AnyOrder)
    assert len(list(Rejection().steps(RejectionSession(free, labels, PLAIN, SampleDraws.of(0, 0, labels.rows))))) == 1


# Token-Shuffle


def test_merging_divides_the_slots_and_keeps_the_vocabulary() -> None:
    layout = grid(4)
    model = small("token_shuffle", layout)
    assert isinstance(model, GroupGenerator)
    ids, labels = some(layout, 2)
    seen: list[int] = []
    model.net.attention[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))  # type: ignore[index, union-attr]
    plan = model.order.plan(layout, None)
    h = model(ids, labels, plan)
    assert seen == [16 // 4]  # the condition and all windows but the last
    assert h.shape[1] == 16
    assert model.head.logits(h).shape[-1] == layout.vocabulary  # type: ignore[operator]
    assert len(list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows)))) == 4
    assert seen[1:] == [1, 1, 1, 1]


def test_a_slot_holds_one_window_and_all_of_it() -> None:
    layout = grid(4)
    model = small("token_shuffle", layout, scale=0.2)
    assert isinstance(model, GroupGenerator)
    ids, labels = some(layout, 1)
    plan, cond = model.order.plan(layout, None), model.condition(labels)
    before = model.feed.parallel(ids, plan, cond, None).x_BSD
    for place in range(12):  # rows 0 to 2
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % 16
        moved = (model.feed.parallel(other, plan, cond, None).x_BSD - before).abs().sum(-1)[0] > 1e-6
        row, column = place // 4, place % 4
        slot = 1 + (row // 2) * 2 + column // 2
        assert moved.nonzero().flatten().tolist() == ([slot] if slot < 4 else [])


# NFIG


@torch.no_grad()
def test_the_tokens_of_a_window_are_fused_and_not_averaged() -> None:
    """The same four tokens in another order are another slot, from the embeddings on: a mean would hold neither order nor number."""
    model = small("token_shuffle", grid(4), scale=0.3)
    assert isinstance(model, GroupGenerator)
    feed = model.feed
    assert isinstance(feed, Merged)
    plan = model.order.plan(model.layout, None)
    ids, labels = some(model.layout, 2)
    window = plan.members(0)[0]
    other = ids.clone()
    other[:, window] = ids[:, window.flip(0)]
    assert not torch.equal(ids, other)
    slots = [feed.parallel(x, plan, model.condition(labels), None).x_BSD for x in (ids, other)]
    assert float((slots[0][:, 1] - slots[1][:, 1]).abs().max()) > 1e-2
    assert torch.equal(slots[0][:, 2:], slots[1][:, 2:])
    # and each state gives back its window's tokens one by one: the four predictions differ
    h = model(ids, labels, plan).unflatten(1, (plan.groups, 4))
    assert min(float((h[:, :, i] - h[:, :, j]).abs().max()) for i in range(4) for j in range(i)) > 1e-3


def test_a_band_is_predicted_from_lower_frequencies_alone() -> None:
    from tokenloom.models.zoo.tokenizers.nfig.quantizer import Frequency, low_pass

    layout = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=16)
    model = small("nfig_ar", layout, codec="nfig")
    assert isinstance(model, GroupGenerator)
    quantizer = model.feed.quantizer
    assert isinstance(quantizer, Frequency)
    torch.nn.init.normal_(quantizer.codebook.weight)
    ids, labels = some(layout, 3)
    sums = quantizer.partial(ids)
    for scale, f in enumerate(sums):
        torch.testing.assert_close(low_pass(f, quantizer.cutoff(scale)), f, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(low_pass(sums[2], quantizer.cutoff(1)), sums[2], atol=1e-2)
    steps = list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows), forced=ids))
    torch.testing.assert_close(steps[-1].state[0], sums[-1], atol=1e-5, rtol=1e-5)


def test_the_fine_model_has_a_size_of_its_own() -> None:
    model = small("coarse_to_fine", grid(3), fine_depth=1, fine_width=16, fine_heads=1, fine_dropout=0.0)
    assert isinstance(model, CoarseToFine)
    assert (model.config.coarse.net.width, model.config.coarse.net.depth) == (32, 2)  # type: ignore[attr-defined]
    assert (model.config.fine.width, model.config.fine.depth, model.config.fine.heads, model.config.fine.dropout) == (16, 1, 1, 0.0)
    ids, labels = some(grid(3), 3)
    assert model.generate(labels, PLAIN, SampleDraws.of(0, 0, 3)).ids.shape == ids.shape

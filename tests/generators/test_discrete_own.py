"""Defining properties of generators that hold a module of their own: coarse labels, distilled orders, whole grids."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import cast

import pytest
import torch
from small_generators import PLAIN, grid, small, some
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.heads.categorical import Categorical
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.visibility import Everything
from tokenloom.models.sampling.sampler import Constant
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine, clusters
from tokenloom.models.zoo.generators.heptapod.net import QueryHeads
from tokenloom.models.zoo.generators.heptapod.objective import WholeGrid
from tokenloom.models.zoo.generators.oar.objective import DistilledOrder
from tokenloom.tasks.runtime.checks import check_guidance

# Coarse to fine


def coarse(layout: TokenLayout, scale: float = 0.3, labels: int = 4) -> CoarseToFine:
    model = small("coarse_to_fine", layout, scale=scale, labels=labels)
    assert isinstance(model, CoarseToFine)
    return model


def test_labels_and_codes_have_a_likelihood_that_sums_to_one() -> None:
    layout = TokenLayout(grids=((1, 2),), vocabulary=6)
    model = coarse(layout, labels=3)
    worlds = torch.tensor(list(product(range(6), repeat=2)))
    batch = Batch(tokens=Tokens(worlds, layout), conditions=Labels(torch.ones(36, dtype=torch.int64)))
    probability = model.log_prob(batch).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-4)
    assert float(probability.std()) > 1e-3
    drawn = model.generate(Labels(torch.ones(8000, dtype=torch.int64)), PLAIN, SampleDraws.of(0, 0, 8000)).ids
    found = (drawn[:, 0] * 6 + drawn[:, 1]).bincount(minlength=36) / 8000
    assert float((found - probability).abs().sum() / 2) < 0.05


def test_labels_are_predicted_in_order_and_codes_from_all_labels() -> None:
    layout = grid(3)
    model = coarse(layout)
    ids, labels = some(layout, 1)
    assert model.coarse.head.out.out_features == 4  # type: ignore[union-attr]
    assert len(list(model.coarse.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows)))) == 9
    label = model.label_V[ids]
    other = label.clone()
    other[0, -1] = (other[0, -1] + 1) % 4
    with torch.no_grad():
        moved = (model._logits(label, labels, None) - model._logits(other, labels, None)).abs().sum(-1)[0] > 1e-5
    assert bool(moved.all())  # the last label is seen everywhere


def test_similar_codes_share_a_label() -> None:
    tokenizer = registry.get("vq").config(dict(registry.get("vq").tiny)).build(signal=signals.image(16, 1))  # type: ignore[attr-defined]
    noise = torch.Generator().manual_seed(0)
    centre = torch.eye(4) * torch.tensor([1.0, -1, 1, -1])
    group = torch.arange(16) % 4
    tokenizer.quantizer.codebook.weight.copy_(centre[group] + 0.05 * torch.randn(16, 4, generator=noise))
    model = coarse(tokenizer.layout)
    before = model.label_V.clone()
    model.adopt(tokenizer=tokenizer)
    same = model.label_V[:, None] == model.label_V
    assert torch.equal(same, group[:, None] == group)
    assert not torch.equal(before, model.label_V)
    again = coarse(tokenizer.layout)
    again.adopt(tokenizer=tokenizer)
    assert torch.equal(again.label_V, model.label_V)


def test_no_label_is_left_without_a_code() -> None:
    vector = torch.cat([torch.zeros(6, 2), torch.ones(2, 2)])  # two places for five labels
    assert clusters(vector, 5, 10).unique().tolist() == [0, 1, 2, 3, 4]


def test_codes_are_guided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = grid(2)
    model = coarse(layout)
    ids, labels = some(layout, 200)
    given = Tokens(model.label_V[ids], model.labels_layout)
    monkeypatch.setattr(model.coarse, "generate", lambda *_: given)
    samplers = [replace(PLAIN, guidance=Constant(value=w)) for w in (0.0, 3.0)]
    first, second = (model.generate(labels, s, SampleDraws.of(0, 0, labels.rows)).ids for s in samplers)
    assert not torch.equal(first, second)
    assert torch.equal(model.label_V[first], given.ids)
    assert torch.equal(model.label_V[second], given.ids)


# OAR


def distilled(layout: TokenLayout, start: float = 0.5) -> GroupGenerator:
    model = small("oar", layout, scale=0.3, start=start)
    assert isinstance(model.objective, DistilledOrder)
    return model


def found_orders(model: GroupGenerator, ids: Tensor, labels: Labels) -> Tensor:
    assert isinstance(model.objective, DistilledOrder)
    return model.objective.found(model, ids, labels)


def one_by_one(model: GroupGenerator, ids: Tensor, labels: Labels, order_BL: Tensor) -> Tensor:
    """(B, L) log-likelihoods of the tokens in this order, by teacher forcing."""
    return -model.nll(ids, labels, Plan(order_BL, (1,) * order_BL.shape[1]), None)


def test_an_image_is_ordered_by_the_likelihood_of_its_tokens() -> None:
    layout = grid(2)
    model = distilled(layout)
    ids, labels = some(layout, 5)
    found = found_orders(model, ids, labels)
    assert torch.equal(found.sort(1).values, torch.arange(4).expand(5, -1))
    assert len(found.unique(dim=0)) > 1  # an order of its own for each image
    with torch.no_grad():
        for row in range(5):
            done: list[int] = []
            for step in range(4):  # greedily, trying every open position
                left = [i for i in range(4) if i not in done]
                orders = torch.tensor([[*done, i, *(j for j in left if j != i)] for i in left])
                chance = one_by_one(model, ids[[row] * len(left)], Labels(labels.label_B[[row] * len(left)]), orders)[:, step]
                done.append(left[int(chance.argmax())])
            assert found[row].tolist() == done


def test_training_ends_on_the_orders_that_were_found() -> None:
    layout = grid(3)
    model = distilled(layout)
    ids, labels = some(layout, 6)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)
    own = one_by_one(model, ids, labels, found_orders(model, ids, labels)).mean()
    for step, same in ((4, False), (5, True)):  # of ten steps
        loss = model.losses(batch, "main", Draws.whole(0, step, 6, steps=10))["loss"]
        assert torch.allclose(loss, -own, atol=1e-5) == same
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_decoding_finds_where_to_go_and_its_cache_is_that_of_one_by_one() -> None:
    layout = grid(3)
    model = distilled(layout)
    _, labels = some(layout, 4)
    steps = list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows)))
    place = torch.cat([s.place_Bn for s in steps], dim=1)
    assert torch.equal(place.sort(1).values, torch.arange(9).expand(4, -1))
    assert len(place.unique(dim=0)) > 1
    data = torch.cat([s.data for s in steps], dim=1)
    ids = torch.zeros_like(data).scatter(1, place, data)
    with torch.no_grad():
        told = model(ids, labels, Plan(place, (1,) * 9))
    for i, step in enumerate(steps):
        # In each step all positions are asked; the one that was chosen is read from its own slot.
        chosen = step.h_BnD[torch.arange(4), place[:, i]]
        torch.testing.assert_close(chosen, told[:, i], atol=2e-5, rtol=1e-5)
        known = torch.zeros(4, 9, dtype=torch.bool).scatter(1, place[:, :i], True)
        assert step.logits is not None
        sure = step.logits.log_softmax(-1).gather(-1, step.drawn[..., None])[..., 0].masked_fill(known, -torch.inf)
        assert torch.equal(sure.argmax(1), place[:, i])
    assert model.likelihood == "none"


# Heptapod


def test_every_state_predicts_all_positions_to_come() -> None:
    layout = grid(3)
    model = small("heptapod", layout, scale=0.3)
    assert isinstance(model.objective, WholeGrid)
    step, place = model.objective.pairs(model.layout.length, Draws.whole(0, 0, 1))
    assert len(step) == 9 * 10 // 2
    assert bool((place >= step).all())
    ids, labels = some(layout, 4)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)
    parts = model.losses(batch, "main", Draws.whole(0, 0, 4))
    torch.testing.assert_close(parts["next"], -model.log_prob(batch).mean() / 9, atol=1e-5, rtol=1e-5)
    # A later token that changes is seen by the states before it, in the loss alone.
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 16
    plan = model.order.plan(layout, None)
    torch.testing.assert_close(model(ids, labels, plan), model(other, labels, plan))
    moved = model.losses(replace(batch, tokens=Tokens(other, layout)), "main", Draws.whole(0, 0, 4))
    assert not torch.allclose(moved["later"], parts["later"])


def test_later_positions_may_be_drawn_for_each_step() -> None:
    model = small("heptapod", grid(4), targets=3)
    assert isinstance(model.objective, WholeGrid)
    pairs = [torch.stack(model.objective.pairs(16, Draws(0, s, 9, a, b, 8))) for s, a, b in ((0, 0, 8), (0, 4, 8), (1, 0, 8))]
    assert pairs[0].shape == (2, 16 + 15 * 3)
    assert torch.equal(pairs[0], pairs[1])  # the same on every rank
    assert not torch.equal(pairs[0], pairs[2])
    step, place = pairs[0]
    assert bool((place[16:] > step[16:]).all())
    assert int(place.max()) == 15


def test_drawn_positions_estimate_the_loss_of_all() -> None:
    layout = grid(4)
    every, some_of = (small("heptapod", layout, scale=0.3, targets=n) for n in (0, 64))
    some_of.load_state_dict(every.state_dict())
    ids, labels = some(layout, 4)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)
    with torch.no_grad():
        exact = every.losses(batch, "main", Draws.whole(0, 0, 4))["later"]
        found = torch.stack([some_of.losses(batch, "main", Draws.whole(0, s, 4))["later"] for s in range(20)])
    assert float(exact - found.mean()) == pytest.approx(0, abs=4 * float(found.std()) / 20**0.5)
    assert float(found.std()) < 0.1 * float((exact - math.log(16)).abs()), "else the test sees nothing"


def test_the_first_state_learns_the_whole_image() -> None:
    layout = grid(3)
    model = small("heptapod", layout)
    assert isinstance(model.objective, WholeGrid)
    ids, labels = some(layout, 3)
    batch = Batch(tokens=Tokens(ids, layout), conditions=labels)  # an image a class
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(80):
        optimizer.zero_grad()
        model.losses(batch, "main", Draws.whole(0, step, 3))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        cond = model.condition(labels)
        slots = model.feed.step(None, model.order.plan(layout, None), cond, 0)
        h = cast(QueryHeads, model.net).trunk(slots, Everything(), cond).expand(-1, 9, -1)
        everything = cast(Categorical, model.head).logits(cast(QueryHeads, model.net).point(h, torch.arange(9))).argmax(-1)
    assert torch.equal(everything, ids)


def test_guidance_is_refused_where_no_null_condition_was_trained() -> None:
    untrained, trained = (small("heptapod", grid(4), label_dropout=rate) for rate in (0.0, 0.1))
    with pytest.raises(ConfigError, match=r"sample\.guidance=0\.5: .*label_dropout"):
        check_guidance(untrained, untrained.sampler.edited(guidance=0.5))  # type: ignore[union-attr, operator]
    for model, weight in ((untrained, 0.0), (trained, 0.5)):
        check_guidance(model, model.sampler.edited(guidance=weight))  # type: ignore[union-attr, operator]

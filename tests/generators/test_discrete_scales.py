"""Defining properties: scales that see themselves alone, masked steps inside a scale, tokens drawn again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_generators import PLAIN, small, some

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, LayoutError, TokenLayout, Tokens
from tokenloom.models.core.settings import OptimizerSettings
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.attention import Attention
from tokenloom.models.parts.feeds.markov import RefinedScales
from tokenloom.models.parts.heads.categorical import pick
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.orders.sizes import Count, Parts, Steps
from tokenloom.models.sampling.sampler import Constant, Moment, Sampler
from tokenloom.models.zoo.generators.hmar.module import TwoTowers
from tokenloom.models.zoo.generators.srdd.feed import Refinable
from tokenloom.models.zoo.generators.srdd.head import Resampled
from tokenloom.tasks.training.optimizer import PhaseOptimizer

SCALES = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), vocabulary=16)


def scaled(name: str, **arguments: Any) -> GroupGenerator:
    """A tiny model over three scales whose codes differ."""
    model = small(name, SCALES, codec="var_vq", scale=0.3, **arguments)
    assert isinstance(model, GroupGenerator)
    torch.nn.init.normal_(model.feed.quantizer.codebook.weight, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr, arg-type]
    return model


@pytest.mark.parametrize(("name", "reach"), [("hmar", {2}), ("srdd", {2}), ("var", {0, 1, 2})])
def test_a_scale_sees_the_slots_of_its_own_alone(name: str, reach: set[int]) -> None:
    model = scaled(name)
    ids, labels = some(SCALES, 2)
    grads: list[torch.Tensor] = []

    def watch(_: Any, inputs: tuple[Any, ...]) -> Any:
        x = inputs[0].x_BSD.detach().requires_grad_()
        grads.append(x)
        return (type(inputs[0])(**{**vars(inputs[0]), "x_BSD": x}), *inputs[1:])

    hook = model.net.register_forward_pre_hook(watch)
    plan = model.order.plan(SCALES, Draws.whole(0, 0, 2))
    model(ids, labels, plan)[:, 5:].square().sum().backward()  # what the last scale predicts
    hook.remove()
    moved = grads[0].grad.abs().sum((0, 2)) > 0  # type: ignore[union-attr]
    level = SCALES.positions[:, 1]
    assert set(level[moved].tolist()) == reach


@pytest.mark.parametrize("name", ["hmar", "srdd"])
def test_the_cache_holds_one_scale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most: list[int] = []
    before = Attention.forward

    def forward(self: Attention, x: Any, visibility: Any, rotations: Any, cache: Any) -> Any:
        most.append(cache.key_BHTE.shape[2])
        return before(self, x, visibility, rotations, cache)

    monkeypatch.setattr(Attention, "forward", forward)
    _, labels = some(SCALES, 2)
    for model, slots in ((scaled(name), 16), (scaled("var"), 21)):
        most.clear()
        list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows)))
        assert max(most) == slots


def test_markov_feeds_refuse_plans_that_see_more() -> None:
    model = scaled("srdd")
    ids, labels = some(SCALES, 2)
    with pytest.raises(LayoutError, match="window"):
        model(ids, labels, scaled("var").order.plan(SCALES, None))


# HMAR


def test_the_steps_of_a_scale_change_without_training() -> None:
    model = scaled("hmar", kept="random")
    ids, labels = some(SCALES, 4)
    other = Parts(parts=((2, 2), (1, 5, 10)))
    for sizes, groups in ((None, 1 + 2 + 1), (other, 1 + 2 + 3), (Steps(count=1), 3), (Steps(count=4), 1 + 4 + 4), (Steps(count=16), 21)):
        sampler = Sampler(guidance=Constant(value=0.0), sizes=sizes)
        plan = model.order.decode(SCALES, 4, SampleDraws.of(3, 0, 4), sizes)
        steps = list(model.decode_steps(labels, sampler, SampleDraws.of(3, 0, labels.rows), forced=ids))
        assert len(steps) == plan.groups == groups
        taught = model(ids, labels, plan)
        torch.testing.assert_close(torch.cat([s.h_BnD for s in steps], dim=1), taught, atol=2e-5, rtol=1e-5)


def test_a_step_knows_what_earlier_steps_of_the_scale_drew_and_no_later_ones() -> None:
    model = scaled("hmar", kept="random")
    ids, labels = some(SCALES, 1)
    plan = model.order.decode(SCALES, 1, SampleDraws.of(0, 0, 1), Parts(parts=((1, 3), (3, 4, 9))))
    h = model(ids, labels, plan)
    first, third = plan.members(3)[0], plan.members(5)[0]  # steps 1 and 3 of the last scale
    early, late = ids.clone(), ids.clone()
    early[0, first[0]] = (early[0, first[0]] + 1) % 16
    late[0, third[0]] = (late[0, third[0]] + 1) % 16
    middle = slice(plan.start(4), plan.start(5))
    assert not torch.allclose(model(early, labels, plan)[:, middle], h[:, middle], atol=1e-3)
    torch.testing.assert_close(model(late, labels, plan)[:, middle], h[:, middle], atol=1e-6, rtol=0)


def late(step: int, rows: int = 64) -> Draws:
    """Draws of the second part of a training."""
    return Draws.whole(0, step, rows, steps=1)


def test_training_masks_every_scale_by_itself_and_weighs_what_is_masked() -> None:
    order = scaled("hmar").order
    plan = order.plan(SCALES, late(1))
    assert plan.known_BL is not None
    assert plan.weight_BL is not None
    assert plan.window == 0
    masked = torch.stack([(~part).sum(1) for part in plan.known_BL.split([1, 4, 16], dim=1)])
    assert int(masked.min()) >= 1
    assert len(masked[2].unique()) > 4
    assert float(plan.weight_BL.sum(1).mean()) == pytest.approx(1)
    assert bool((plan.weight_BL[plan.known_BL] == 0).all())
    parts = [order.plan(SCALES, Draws(0, 1, 1, start, start + 16, 64)) for start in range(0, 64, 16)]
    assert torch.equal(torch.cat([p.weight_BL for p in parts]), plan.weight_BL)  # type: ignore[misc]


def test_whole_scales_weigh_by_a_normal_density_of_their_size_in_reverse() -> None:
    plan = scaled("hmar").order.plan(SCALES, Draws.whole(0, 1, 4, steps=100))
    assert plan.known_BL is None
    assert plan.weight_BL is not None
    size = torch.tensor([1.0, 4.0, 16.0])
    density = torch.distributions.Normal(size.mean(), size.std()).log_prob(size).exp()
    found = torch.stack([part.sum() for part in plan.weight_BL[0].split([1, 4, 16])])
    torch.testing.assert_close(found, density.flip(0) / density.sum())
    assert float(found[0]) < float(found[2])


@torch.no_grad()
def test_the_loss_of_a_scale_is_that_of_its_masked_positions() -> None:
    """What is reported of a scale counts positions as the plan weighs them, so that the scales' parts make the loss."""
    model = scaled("hmar").train()
    ids, labels = some(SCALES, 8)
    for draws in (late(1, 8), late(1, 8), Draws.whole(0, 1, 8, steps=100)):
        parts = model.losses(Batch(tokens=Tokens(ids, SCALES), conditions=labels), "main", draws)
        plan = model.order.plan(SCALES, Draws.whole(0, 1, 8, steps=draws.steps))
        assert plan.weight_BL is not None
        shares = [float(part.sum(1).mean()) for part in plan.weight_BL.split([1, 4, 16], dim=1)]
        total = sum(share * parts[f"loss_scale_{k}"] for k, share in enumerate(shares))
        torch.testing.assert_close(total, parts["loss"], atol=1e-5, rtol=1e-5)


def test_the_second_tower_predicts_the_later_steps_of_a_scale_alone() -> None:
    model = scaled("hmar", kept="random")
    assert isinstance(model, TwoTowers)
    ids, labels = some(SCALES, 2)
    parts = Parts(parts=((1, 3), (3, 4, 9)))
    plan = model.order.decode(SCALES, 2, SampleDraws.of(0, 0, 2), parts)
    later = torch.tensor([False, False, *[True] * 3, *[False] * 3, *[True] * 13])
    batch = Batch(tokens=Tokens(ids, SCALES), conditions=labels)
    with torch.no_grad():
        before, taught = model(ids, labels, plan), model.nll(ids, labels, plan, None)
        masked = model.losses(batch, "main", late(1, 2))["loss"]
        for part in ("net", "head"):
            for name, parameter in model.refiner[part].named_parameters():
                if name in ("mlp.0.out.weight", "out.weight"):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        moved = (model(ids, labels, plan) - before).abs().amax((0, 2)) > 1e-5
        other = (model.nll(ids, labels, plan, None) - taught).abs().amax(0) > 1e-5
        assert torch.equal(moved, later)
        assert torch.equal(other, later)
        assert model.losses(batch, "main", late(1, 2))["loss"] != masked


def test_training_learns_whole_scales_then_copies_and_refines_masked_ones() -> None:
    """Half of eight steps each: what the other part learns stays as it is, and the second tower begins as the trained first one."""
    model = scaled("hmar", start=0.5).train()
    assert isinstance(model, TwoTowers)
    ids, labels = some(SCALES, 4)
    batch, second = Batch(tokens=Tokens(ids, SCALES), conditions=labels), ("refiner.", "feed.open")
    optimizer = PhaseOptimizer(model, "main", OptimizerSettings(lr=1e-2, warmup=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(8):
        if step == 4:
            tower, head = model.refiner["net"], model.refiner["head"]
            for name, mine in tower.attention[0].named_parameters():
                assert torch.equal(mine, model.net.attention[1].get_parameter(name))
            assert torch.equal(tower.norm.maps[0].weight, model.net.norm.maps[1].weight)
            assert torch.equal(tower.norm.final.weight, model.net.norm.final.weight)
            assert torch.equal(head.out.weight, model.head.out.weight)
            after = {name: p.detach().clone() for name, p in model.named_parameters()}
            assert not torch.equal(after["net.mlp.1.out.weight"], before["net.mlp.1.out.weight"])
            assert torch.equal(after["feed.open"], before["feed.open"])
        optimizer.clear()
        draws = Draws.whole(0, step, 4, 8)
        model.losses(batch, "main", draws)["loss"].backward()
        optimizer.step(step, 8)
        model.after_step(draws)
    moved = {name for name, p in model.named_parameters() if p.requires_grad and not torch.equal(p, after[name])}
    assert moved == {name for name in after if name.startswith(second)}


@pytest.mark.parametrize("kept", ["surest", "random"])
def test_tokens_that_are_kept_are_seen_by_all_of_their_scale(kept: str) -> None:
    model = scaled("hmar", kept=kept)
    assert isinstance(model.feed, RefinedScales)
    ids, labels = some(SCALES, 3)
    keep = torch.zeros(21, dtype=torch.bool)
    keep[[2, 4, 20]] = True
    steps = list(model.decode_steps(labels, PLAIN, SampleDraws.of(0, 0, labels.rows), ids, keep))
    assert [s.place_Bn.shape[1] for s in steps][:2] == [1, 2]  # the first scale, then what is kept of the second
    done = model.inpaint(Tokens(ids, SCALES), keep, labels, PLAIN, SampleDraws.of(0, 0, labels.rows)).ids
    assert torch.equal(done[:, keep], ids[:, keep])
    other = ids.clone()
    other[:, 20] = (ids[:, 20] + 5) % 16
    again = model.inpaint(Tokens(other, SCALES), keep, labels, PLAIN, SampleDraws.of(0, 0, labels.rows)).ids
    assert torch.equal(again[:, :5], done[:, :5])
    assert not torch.equal(again[:, 5:20], done[:, 5:20])  # positions before it in storage order


def test_the_released_schedule_takes_fourteen_steps() -> None:
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    layout = TokenLayout(grids=tuple((n, n) for n in sides), vocabulary=16)
    plan = scaled("hmar").order.decode(layout, 1, SampleDraws.of(0, 0, 1))
    assert plan.sizes == (1, 1, 3, 1, 1, 2, 5, 16, 25, 36, 64, 100, 169, 256)
    with pytest.raises(ConfigError, match=r"sizes\.parts"):
        Parts(parts=((1, 3), (2, 2)))


def test_a_step_keeps_the_tokens_of_its_scale_that_are_likeliest() -> None:
    model = scaled("hmar", schedule=((1, 3), (2, 5, 9)))
    _, labels = some(SCALES, 3)
    known = torch.zeros(3, 21, dtype=torch.bool)
    for step in model.decode_steps(labels, PLAIN, SampleDraws.of(4, 0, labels.rows)):
        assert step.logits is not None
        assert step.drawn is not None
        start, stop = {1: (0, 1), 4: (1, 5), 16: (5, 21)}[step.logits.shape[1]]
        sure = step.logits.log_softmax(-1).gather(-1, step.drawn.unsqueeze(-1))[..., 0]
        sure = sure.masked_fill(known[:, start:stop], -torch.inf)
        best = start + sure.topk(step.place_Bn.shape[1], dim=1).indices
        assert torch.equal(step.place_Bn.expand(3, -1).sort(1).values, best.sort(1).values)
        known.scatter_(1, step.place_Bn.expand(3, -1), True)
    assert bool(known.all())


@torch.no_grad()
def test_known_tokens_enter_as_their_codes_under_the_map_of_the_codes_so_far() -> None:
    model = scaled("hmar")
    feed = model.feed
    assert isinstance(feed, RefinedScales)
    ids, known = torch.tensor([[3, 7]]), torch.tensor([[True, False]])
    x = feed.known(ids, known)
    code = feed.quantizer.codebook.weight[3]
    torch.testing.assert_close(x[0, 0], feed.embed(code) - feed.embed.bias)
    torch.testing.assert_close(x[0, 1], feed.open)
    assert sum(n.startswith("feed.table") for n, _ in model.named_parameters()) == 0


# SRDD


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_tokens_below_the_threshold_are_drawn_again(rounds: int) -> None:
    head = Resampled(Resampled.Config(threshold=0.15, rounds=rounds), TokenLayout(grids=((1, 1),), vocabulary=4), 4)
    p = torch.tensor([0.5, 0.3, 0.12, 0.08])
    with torch.no_grad():
        head.out.weight.copy_(torch.diag(p.log()))
    drawn = head.draw(Hidden(torch.ones(1, 40_000, 4)), PLAIN, Moment(0, 1, 0, 1, 1), SampleDraws.of(0, 0, 1))
    m = 0.2
    factor = torch.tensor([sum(m**i for i in range(rounds + 1))] * 2 + [m**rounds] * 2)
    torch.testing.assert_close(drawn.data[0].bincount(minlength=4) / 40_000, p * factor, atol=8e-3, rtol=0)
    torch.testing.assert_close(drawn.log_probability_BN()[0], p.log()[drawn.data[0]])


@torch.no_grad()
def test_a_round_predicts_the_scale_from_the_sum_with_its_likely_tokens_in_it() -> None:
    """The net is run again on the slots that the feed would make of that sum; unlikely tokens alone are drawn anew, from what it says."""
    model = scaled("srdd", threshold=0.06, rounds=1)
    assert isinstance(model.feed, Refinable)
    _, labels = some(SCALES, 3)
    given: list[torch.Tensor] = []
    hook = model.net.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].x_BSD))
    steps = list(model.decode_steps(labels, PLAIN, SampleDraws.of(1, 0, 3)))
    hook.remove()
    assert len(given) == 2 * len(steps) == 6
    first, again = given[4], given[5]
    model.head.rounds = 0
    plain = list(model.decode_steps(labels, PLAIN, SampleDraws.of(1, 0, 3), forced=torch.cat([s.data for s in steps], 1)))
    drawn = pick(plain[2].logits, PLAIN, Moment(2, 3, 5, 21, 21), SampleDraws.of(1, 0, 3))  # type: ignore[arg-type]
    sure = plain[2].logits.softmax(-1).gather(-1, drawn.unsqueeze(-1))[..., 0] >= 0.06  # type: ignore[union-attr]
    assert bool(sure.any())
    assert not bool(sure.all())
    quantizer = model.feed.quantizer
    f_hat = quantizer.partial(torch.cat([steps[0].data, steps[1].data, drawn], 1))[1]
    kept = quantizer.codebook.weight[drawn] * sure.unsqueeze(-1)
    refined = f_hat + quantizer._up(2, kept.transpose(1, 2).unflatten(2, (4, 4)))
    moved = (refined - f_hat).flatten(2).transpose(1, 2) @ model.feed.embed.weight.T
    torch.testing.assert_close(again - first, moved, atol=1e-5, rtol=1e-4)
    assert torch.equal(steps[2].data[sure], drawn[sure])
    assert not torch.equal(steps[2].data, drawn)
    new = pick(steps[2].logits, PLAIN, Moment(2, 3, 5, 21, 21), SampleDraws.of(1, 0, 3), "again.0")  # type: ignore[arg-type]
    assert torch.equal(steps[2].data[~sure], new[~sure])


@torch.no_grad()
def test_fewer_scales_of_one_model_are_tokens_that_the_tokenizer_decodes() -> None:
    model = scaled("srdd", rounds=0)
    _, labels = some(SCALES, 2)
    tokens = model.generate(labels, replace(PLAIN, sizes=Count(count=2)), SampleDraws.of(0, 0, 2))
    assert tokens.layout.grids == ((1, 1), (4, 4))
    assert tokens.data.shape == (2, 17)
    model.check_sampler(replace(PLAIN, sizes=Count(count=2)))
    with pytest.raises(ConfigError, match=r"sample\.steps=4: from 2 to 3"):
        model.check_sampler(replace(PLAIN, sizes=Count(count=4)))
    plan = model.order.decode(SCALES, 2, None, Count(count=2))
    full = torch.zeros(2, 21, dtype=torch.int64).scatter(1, plan.sequence_BL.expand(2, -1), tokens.data)
    steps = list(model.decode_steps(labels, replace(PLAIN, sizes=Count(count=2)), SampleDraws.of(0, 0, 2), forced=full))
    torch.testing.assert_close(torch.cat([s.h_BnD for s in steps], 1), model(full, labels, plan), atol=2e-5, rtol=1e-5)
    quantizer = model.feed.quantizer
    some_of = quantizer.of_some(tokens.data, tokens.layout.grids)
    scale = [quantizer._up(i, quantizer._vectors(ids, i)) for i, ids in ((0, tokens.data[:, :1]), (2, tokens.data[:, 1:]))]
    torch.testing.assert_close(some_of, scale[0] + scale[1])
    with pytest.raises(LayoutError, match="not some of the scales"):
        quantizer.of_some(tokens.data, ((4, 4), (1, 1)))
    codec = registry.get("var_vq").config(registry.get("var_vq").tiny).build(signal=signals.image(16, 1)).eval()  # type: ignore[attr-defined]
    assert codec.layout.grids == SCALES.grids
    part = Tokens(tokens.data, TokenLayout(grids=((1, 1), (4, 4)), vocabulary=codec.layout.vocabulary))
    expected = codec.pixels(codec.quantizer.of_some(part.data, part.layout.grids)).clamp(-1, 1)
    torch.testing.assert_close(codec.decode(part), expected)

"""What each method is known by: steps, masks, any order or number of steps from one model, in-painting, likelihoods that sum to one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, LayoutError, Tokenizer, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.drawn import Drawn
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.orders import Confidence, Even, LogitConfidence, Steps
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.visibility import Causal, Everything, Groups

CLASSES, ROWS = 3, 4


def made(name: str, seed: int = 0, **changes: Any) -> GroupGenerator:
    """The tiny model of a recipe with weights away from their start, in eval mode."""
    recipe = registry.get(name)
    codec = ModelSpec("tokenizer", recipe.codec, dict(registry.get(recipe.codec).tiny), {}, {"signal": signals.image(16, 1).to_dict()})
    if (needs := getattr(codec.config(), "needs", ())) and "tokenizer" in needs:
        base = registry.get(codec.recipe).codec
        codec.given["tokenizer"] = ModelSpec(
            "tokenizer", base, dict(registry.get(base).tiny), {}, {"signal": signals.image(16, 1).to_dict()}
        ).to_dict()
    tokenizer = codec.build()
    assert isinstance(tokenizer, Tokenizer)
    given = {"layout": tokenizer.layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
    torch.manual_seed(seed)
    model = ModelSpec("generator", name, {**recipe.tiny, **changes}, {}, given).build()
    assert isinstance(model, GroupGenerator)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape)
    return model.eval()


def tokens(model: GroupGenerator, seed: int = 1, rows: int = ROWS) -> torch.Tensor:
    if model.layout.channels:
        return torch.randn(rows, model.layout.length, model.layout.channels, generator=torch.Generator().manual_seed(seed))
    shape = (rows, model.layout.length) + ((model.layout.codebooks,) if model.layout.codebooks > 1 else ())
    return torch.randint(model.layout.vocabulary, shape, generator=torch.Generator().manual_seed(seed))


LABELS = Labels(torch.arange(ROWS) % CLASSES)


@torch.no_grad()
def hidden(model: GroupGenerator, ids: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states by decoding and by teacher forcing."""
    steps = model.decode_steps(LABELS, model.sampler.edited(guidance=0.0), SampleDraws.of(0, 0, LABELS.rows), forced=ids, plan=plan)
    return torch.cat([s.h_BnD for s in steps], dim=1), model(ids, LABELS, plan)


@pytest.mark.parametrize("name", ["rar", "randar", "arpg", "halton_maskgit"])
@pytest.mark.parametrize("sizes", [Even(size=1), Even(size=5), Even(size=16), Steps(count=4)])
def test_any_order_and_group_size_from_one_model(name: str, sizes: Even | Steps) -> None:
    if name == "rar" and sizes != Even(size=1):
        pytest.skip("one position a step")
    model = made(name)
    noise = torch.rand(ROWS, model.layout.length, generator=torch.Generator().manual_seed(4))
    decoded, taught = hidden(model, tokens(model), Plan(noise.argsort(1), sizes.cut(model.layout.length)))
    torch.testing.assert_close(decoded, taught, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [("nar", 7), ("par", 7), ("raster", 16), ("npp", 16), ("arpg", 5), ("randar", 5)])
def test_steps_of_a_four_by_four_grid(name: str, steps: int) -> None:
    model = made(name)
    assert model.layout.grids == ((4, 4),)
    # NAR: 2n - 1; PAR: four alone, then four at a time
    found = list(model.decode_steps(LABELS, model.sampler, SampleDraws.of(0, 0, LABELS.rows)))
    assert len(found) == steps
    assert sorted(torch.cat([s.place_Bn[0] for s in found]).tolist()) == list(range(16))


@pytest.mark.parametrize("name", ["maskgit", "halton_maskgit", "arpg", "randar", "titok_imagebert", "tokenbridge_ar"])
def test_the_number_of_steps_changes_without_training(name: str) -> None:
    model = made(name)
    for steps in (1, 2, 6):
        found = list(model.decode_steps(LABELS, model.sampler.edited(steps=steps, guidance=0.5), SampleDraws.of(0, 0, LABELS.rows)))
        assert len(found) == steps
        for row in range(ROWS):
            places = torch.cat([s.place_Bn.expand(ROWS, -1)[row] for s in found])
            assert sorted(places.tolist()) == list(range(model.layout.length))


def test_maskgit_keeps_what_it_is_surest_of() -> None:
    model = made("maskgit", noise=0.0)
    known = torch.zeros(ROWS, 16, dtype=torch.bool)
    for step in model.decode_steps(LABELS, model.sampler, SampleDraws.of(0, 0, LABELS.rows)):
        assert step.logits is not None
        sure = step.logits.log_softmax(-1).gather(-1, step.drawn[..., None])[..., 0].masked_fill(known, -torch.inf)
        rest = sure.scatter(1, step.place_Bn, -torch.inf)
        assert bool((sure.gather(1, step.place_Bn).min(1).values >= rest.max(1).values).all())
        assert torch.equal(step.data, step.drawn.gather(1, step.place_Bn))
        known = known.scatter(1, step.place_Bn, True)
    assert bool(known.all())


def test_sureness_is_a_probability_and_titoks_is_a_logit() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, shift = torch.randn(2, 5, 7, generator=draw), torch.randn(2, 5, 1, generator=draw)
    ids = torch.randint(7, (2, 5), generator=draw)
    ways = {Confidence(noise=0.0): True, LogitConfidence(noise=0.0): False}
    for choice, same in ways.items():
        plain, moved = (choice.confidence(Drawn(ids, given), 0, 2, SampleDraws.of(0, 0, 2)) for given in (logits, logits + shift))
        assert torch.allclose(plain, moved, atol=1e-5) is same, "a constant at a position changes no probability there"
    kinds = {name: type(getattr(made(name).order, "choice")) for name in ("maskgit", "titok_imagebert", "titok_uvitbert")}  # noqa: B009
    assert kinds == {"maskgit": Confidence, "titok_imagebert": LogitConfidence, "titok_uvitbert": LogitConfidence}


def test_arpg_queries_do_not_see_each_other() -> None:
    model, ids = made("arpg"), tokens(made("arpg"))
    sequence = torch.randperm(16, generator=torch.Generator().manual_seed(2))[None]
    together, _ = hidden(model, ids, Plan(sequence, (6, 10)))
    first = torch.cat([sequence[:, :6], sequence[:, 6:].flip(1)], dim=1)
    apart, _ = hidden(model, ids, Plan(first, (6, 1, 9)))
    torch.testing.assert_close(together[:, 15], apart[:, 6], atol=2e-5, rtol=1e-5)


def test_nar_mask_and_neighbours() -> None:
    model = made("nar")
    plan = model.order.plan(model.layout, None)
    slots = model.feed.parallel(tokens(model), plan, model.condition(LABELS), None)
    distance = torch.tensor([r + c for _, _, r, c in model.layout.positions.tolist()])
    held = slots.position_BS[0, 1:]
    assert 15 not in held.tolist()  # the last group predicts nothing
    seen = Groups(slots.group_BS, slots.group_BS, plan.window).seen_BST[0]
    assert torch.equal(seen[1:, 1:], distance[held][:, None] >= distance[held][None])
    assert seen[:, 0].all()
    assert not seen[0, 1:].any()
    for n, place in enumerate(plan.sequence_BL[0].tolist()):
        right, below = (int(s) for s in slots.output_index[0, n])
        row, column = divmod(place, 4)
        if place == 0:
            assert (right, below) == (0, 0)
        else:
            assert (right == -1) == (column == 0)
            assert (below == -1) == (row == 0)
            assert column == 0 or held[right - 1] == place - 1
            assert row == 0 or held[below - 1] == place - 4


def test_par_mask_is_causal_then_block_causal() -> None:
    model = made("par")
    plan = model.order.plan(model.layout, None)
    slots = model.feed.parallel(tokens(model), plan, model.condition(LABELS), None)
    # condition, four first tokens of which the last stands beside three registers, then groups of four
    group = torch.tensor([0, 1, 2, 3] + [g for g in (4, 5, 6) for _ in range(4)])
    assert torch.equal(Groups(slots.group_BS, slots.group_BS, plan.window).seen_BST[0], group[:, None] >= group[None])
    assert (slots.position_BS[0, 5:8] == -1).all()  # registers stand nowhere


def test_npp_is_given_averages_and_predicts_whole_patches() -> None:
    model, ids = made("npp"), tokens(made("npp"))
    order: Any = model.order
    plan = order.plan(model.layout, Draws.whole(0, 0, ROWS, steps=10))
    assert plan.sizes == (4,) * 4
    slots = model.feed.parallel(ids, plan, model.condition(LABELS), None)
    assert slots.x_BSD.shape[1] == 4  # a quarter of raster's sixteen
    table: Any = model.feed.table
    torch.testing.assert_close(slots.x_BSD[:, 1], table(ids[:, [0, 1, 4, 5]]).mean(1))
    assert slots.position_BS[0].tolist() == [-1, 0, 1, 4]  # rows and columns of patches
    decoded, taught = hidden(model, ids, plan)
    torch.testing.assert_close(decoded, taught.repeat_interleave(4, dim=1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_what_slots_claim_to_see_is_what_the_rule_says(name: str) -> None:
    if not isinstance(registry.get(name).config(registry.get(name).tiny), GroupGenerator.Config):
        pytest.skip("holds its own module")
    model = made(name)
    plan = model.order.plan(model.layout, Draws.whole(0, 0, ROWS, steps=10)).to(torch.device("cpu"))
    data = tokens(model)
    slots = model.feed.parallel(data, plan, model.condition(LABELS), None)
    mask = Groups(slots.group_BS, slots.group_BS, plan.window).seen_BST
    if isinstance(slots.visibility, Causal) and plan.window is None:
        assert torch.equal(mask, torch.ones_like(mask).tril())
    elif isinstance(slots.visibility, Everything):
        assert mask.all()
    seen: torch.Tensor | None = None
    sampler = model.sampler.edited(guidance=0.0)
    for step in model.decode_steps(LABELS, sampler, SampleDraws.of(0, 0, LABELS.rows), forced=data):
        group = step.slots.group_BS[:1]
        seen = group if seen is None or model.feed.passes == "whole" else torch.cat([seen, group], dim=1)
        mask = Groups(group, seen, plan.window).seen_BST
        if isinstance(step.slots.visibility, Everything) and plan.window is None:
            assert mask.all()
        elif isinstance(step.slots.visibility, Causal):
            assert torch.equal(mask, torch.ones_like(mask).tril())
        cached = group.shape[1] if step.slots.cached is None else step.slots.cached
        seen = seen[:, : seen.shape[1] - group.shape[1] + cached]


@pytest.mark.parametrize("name", ["maskgit", "halton_maskgit", "arpg", "randar", "tokenbridge_ar", "raster"])
def test_in_painting_keeps_what_is_given(name: str) -> None:
    model = made(name)
    ids, keep = tokens(model), torch.zeros(16, dtype=torch.bool)
    keep[[2, 9, 15]] = True
    sampler = model.sampler.edited(guidance=0.5)
    painted = model.inpaint(Tokens(ids, model.layout), keep, LABELS, sampler, SampleDraws.of(0, 0, LABELS.rows)).ids
    assert torch.equal(painted[:, keep], ids[:, keep])
    assert not torch.equal(painted, ids)
    changed = ids.clone()
    changed[:, 15] = (changed[:, 15] + 1) % model.layout.vocabulary

    def first_seen(data: torch.Tensor) -> torch.Tensor:
        """Hidden states of the first position that is drawn."""
        steps = model.decode_steps(LABELS, sampler, SampleDraws.of(0, 0, LABELS.rows), data, keep)
        step = next(s for s in steps if not keep[s.place_Bn[0]].any())
        return step.h_BnD[:, 0]

    sees_the_end = not torch.allclose(first_seen(ids), first_seen(changed))
    assert sees_the_end == (name != "raster")  # a fixed order meets what is given in its own time


@torch.no_grad()
@pytest.mark.parametrize("name", ["open_magvit2", "infinity", "tokenbridge_ar"])
def test_probabilities_of_all_tokens_sum_to_one(name: str) -> None:
    model = made(name)
    layout = model.layout
    every = torch.tensor(list(itertools.product(range(layout.vocabulary), repeat=layout.codebooks)))
    h = torch.randn(1, 1, model.config.net.width).expand(1, len(every), -1)
    torch.testing.assert_close((-model.head.loss(h, every[None])).exp().sum(), torch.tensor(1.0))


def test_factorised_tokens_depend_on_the_ones_before() -> None:
    model: Any = made("open_magvit2")
    h, ids = torch.randn(1, 1, 32), torch.zeros(1, 1, 2, dtype=torch.long)
    other = ids.clone()
    other[..., 0] = 3
    first, second = model.head.logits(h, ids), model.head.logits(h, other)
    assert torch.equal(first[:, :, 0], second[:, :, 0])
    assert not torch.allclose(first[:, :, 1], second[:, :, 1])


def test_flexvar_takes_other_grids_numbers_of_steps_and_aspects() -> None:
    model = made("flexvar")
    for grids in (((1, 1), (4, 4)), ((1, 1), (2, 2), (3, 3), (5, 5), (8, 8)), ((1, 1), (2, 3), (3, 5))):
        other = model.on(grids)
        made_ = other.generate(LABELS, other.sampler.edited(top_k=0), SampleDraws.of(0, 0, LABELS.rows))
        assert made_.layout.grids == grids
        ids = tokens(other)
        plan = other.order.decode(other.layout, ROWS)
        decoded, taught = hidden(other, ids, plan)
        torch.testing.assert_close(decoded, taught, atol=2e-5, rtol=1e-5)
    with pytest.raises(LayoutError, match="bound to its grids"):
        made("var").on(((1, 1), (8, 8)))


def test_flexvar_draws_images_in_fewer_steps_than_grids_are_stored() -> None:
    model = made("flexvar").on(tuple((n, n) for n in range(1, 9)))
    for count in (3, 5, 8):
        sampler = model.sampler.edited(top_k=0, steps=count)
        made_, trace = model.decode(LABELS, sampler, SampleDraws.of(0, 0, LABELS.rows))
        assert trace.steps == count
        assert made_.layout == model.layout
        plan = model.order.decode(model.layout, ROWS, None, sampler.sizes)
        assert plan.sizes[-1] == 64
        decoded, taught = hidden(model, tokens(model), plan)
        torch.testing.assert_close(decoded, taught, atol=2e-5, rtol=1e-5)
    batch = Batch(tokens=Tokens(tokens(model), model.layout), conditions=LABELS)
    assert all(bool(model.losses(batch, "main", Draws.whole(0, step, ROWS))["loss"].isfinite()) for step in range(4))


def test_flexvar_scales_that_are_left_out_do_not_matter() -> None:
    model, ids = made("flexvar"), tokens(made("flexvar"))
    whole = model.order.decode(model.layout, ROWS)
    part = Plan(torch.cat([whole.members(0), whole.members(2)], 1), (1, 16))
    short = model.on(((1, 1), (4, 4)))
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids, LABELS, part), short(take(ids, part.sequence_BL), LABELS, short.order.decode(short.layout, 1)), atol=1e-5, rtol=1e-5
        )


def test_more_schedules_of_one_guidance_weight() -> None:
    model = made("rar")
    flat = replace(model.sampler, guidance=replace(model.sampler.guidance, value=0.0))
    ids = tokens(model)
    runs = [list(model.decode_steps(LABELS, s, SampleDraws.of(0, 0, LABELS.rows), forced=ids)) for s in (flat, model.sampler)]
    assert runs[0][0].logits is not None
    assert runs[1][0].logits is not None
    torch.testing.assert_close(runs[0][0].logits, runs[1][0].logits, atol=1e-5, rtol=1e-5)  # the weight is zero at first
    assert not torch.allclose(runs[0][-1].logits, runs[1][-1].logits)  # type: ignore[arg-type]

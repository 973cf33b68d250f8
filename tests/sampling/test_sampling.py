"""Filters, schedules and draws against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout
from tokenloom.models.core.registry import get, names
from tokenloom.models.parts.orders import Arccos, Count, Even, Steps
from tokenloom.models.parts.orders.sizes import rule_of
from tokenloom.models.sampling.filters import inverse, keep
from tokenloom.models.sampling.sampler import Constant, Fading, Interval, Linear, Moment, PowerCosine, Sampler, Table


def test_top_k_keeps_the_k_largest() -> None:
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    assert keep(logits, top_k=2).isfinite().tolist() == [[False, True, True, False]]
    assert torch.equal(keep(logits, top_k=0), logits)
    assert torch.equal(keep(logits, top_k=9), logits)


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert keep(logits, top_p=0.79).isfinite().tolist() == [True, True, False, False]
    assert keep(logits, top_p=0.81).isfinite().tolist() == [True, True, True, False]
    assert keep(logits, top_p=1e-9).isfinite().tolist() == [True, False, False, False]
    assert torch.equal(keep(logits, top_p=1.0), logits)


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert keep(logits, top_k=2, top_p=0.62).isfinite().tolist() == [True, False, False, False]
    assert keep(logits, top_k=2, top_p=0.63).isfinite().tolist() == [True, True, False, False]


def test_equal_logits_stay_or_go_together() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0])
    assert keep(logits, top_k=2).isfinite().tolist() == [False, True, True, True, True]
    assert keep(logits, top_k=2, top_p=0.9).isfinite().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(("k", "p"), [(0, 0.3), (40, 1.0), (40, 0.8), (1, 0.5), (64, 0.95)])
def test_filters_by_their_definition(k: int, p: float) -> None:
    logits = 3 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, got in zip(logits, keep(logits, k, p).isfinite(), strict=True):
        ranked = row.argsort(descending=True)[: k or 64]
        before = row[ranked].softmax(0).cumsum(0) - row[ranked].softmax(0)
        assert set(ranked[before < p].tolist()) == set(got.nonzero().flatten().tolist())


def test_no_number_draws_what_has_no_probability() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    last = 1 - 2.0**-24
    p = float(torch.tensor(0.0).sub(torch.tensor([0.0, 1.0]).logsumexp(0)).exp())
    numbers = torch.tensor([0.0, 0.99 * p, 1.01 * p, 0.9, last, 1.0])
    assert inverse(logits.expand(6, 5), numbers).tolist() == [1, 1, 3, 3, 3, 3]
    flat = torch.zeros(1 << 14)
    assert inverse(flat, torch.tensor(last)).item() >= (1 << 14) - 2


def test_draws_follow_the_softmax() -> None:
    p = torch.tensor([0.6, 0.3, 0.1, 0.0])
    ids = inverse(p.log().expand(40_000, 4), SampleDraws.of(0, 0, 40_000).uniform("head", 0))
    share = torch.bincount(ids, minlength=4) / len(ids)
    # Four standard deviations of a binomial share.
    assert bool(((share - p).abs() <= 4 * (p * (1 - p) / len(ids)).sqrt()).all())


def test_greedy_is_top_1() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(inverse(keep(logits, top_k=1), SampleDraws.of(2, 0, 50).uniform("head", 0)), logits.argmax(-1))


def test_schedules() -> None:
    assert [Linear(value=1.5).at(i / 4) for i in range(5)] == [0.0, 0.375, 0.75, 1.125, 1.5]
    assert Constant(value=2.0).at(0.3) == 2.0
    assert PowerCosine(value=16.0, power=2.75).at(0.0) == 0.0
    assert math.isclose(PowerCosine(value=16.0, power=2.75).at(1.0), 16.0)
    assert math.isclose(PowerCosine(value=2.0, power=1.0).at(0.5), 1.0)


def test_edited_keeps_what_is_not_given() -> None:
    sampler = Sampler(guidance=Linear(value=1.5), top_k=900, top_p=0.96)
    assert sampler.edited() == sampler
    assert sampler.edited(guidance=1.0, top_k=50) == Sampler(guidance=Linear(value=1.0), top_k=50, top_p=0.96)
    assert sampler.edited(guidance_schedule="constant").guidance == Constant(value=1.5)
    with pytest.raises(ConfigError, match=r"sample\.top_p=1\.5"):
        sampler.edited(top_p=1.5)


def test_clocks_of_schedules() -> None:
    moments = [Moment(0, 3, 0, 2, 12), Moment(1, 3, 2, 6, 12), Moment(2, 3, 6, 12, 12)]
    found = {clock: [m.share(clock) for m in moments] for clock in ("steps", "begun", "before", "after", "almost")}
    assert found == {
        "steps": [0, 0.5, 1],
        "begun": [0, 1 / 3, 2 / 3],
        "before": [0, 1 / 6, 0.5],
        "after": [1 / 6, 0.5, 1],
        "almost": [1 / 6, 0.5, 11 / 12],
    }
    assert Linear(value=4.0, clock="after").on(moments[1]) == 2.0
    assert Moment(0, 1, 0, 4, 4).share("steps") == 0


def test_a_schedule_named_again_stays_and_another_keeps_its_clock() -> None:
    own = Sampler(guidance=PowerCosine(value=3.0, power=2.75, clock="begun"))
    assert own.edited(guidance_schedule="power_cosine", guidance=2.0).guidance == PowerCosine(value=2.0, power=2.75, clock="begun")
    assert own.edited(guidance_schedule="linear").guidance == Linear(value=3.0, clock="begun")


LAYOUT = TokenLayout(grids=((4, 4),), vocabulary=8)
OWN = {name: get(name).config(get(name).tiny) for name in names("generator")}
STEPPED = [name for name, config in OWN.items() if isinstance(getattr(getattr(config, "order", None), "decoding", None), Steps)]


@pytest.mark.parametrize("name", STEPPED)
def test_asking_for_an_orders_own_number_of_steps_changes_nothing(name: str) -> None:
    order = OWN[name].order  # type: ignore[attr-defined]
    own = order.decode(LAYOUT, 1, SampleDraws.of(0, 0, 1))
    wanted = [Sampler().edited(steps=count).sizes for count in (order.decoding.count, 2)]
    again, fewer = (order.decode(LAYOUT, 1, SampleDraws.of(0, 0, 1), sizes) for sizes in wanted)
    assert again.sizes == own.sizes
    assert len(fewer.sizes) == 2


def test_masked_generators_are_among_them() -> None:
    assert {"maskgit", "halton_maskgit", "arpg", "titok_imagebert", "titok_uvitbert"} <= set(STEPPED)
    assert rule_of(Even(size=4), Count(count=3)) == Steps(count=3)
    assert rule_of(Steps(count=4, curve=Arccos(), rounding="down"), Count(count=3)) == Steps(count=3, curve=Arccos(), rounding="down")


def test_bursts_take_no_number_of_steps() -> None:
    model = ModelSpec(
        "generator",
        "sigma_gpt",
        dict(get("sigma_gpt").tiny) | {"burst": 1},
        {},
        {"layout": LAYOUT.to_dict(), "classes": 3, "tokenizer": None},
    ).build()
    with pytest.raises(ConfigError, match=r"^sample\.decoder=rejection: .*sample\.steps"):
        model.check_sampler(Sampler().edited(steps=3))  # type: ignore[union-attr, operator]


def test_steps_are_a_choice_of_the_sampler() -> None:
    assert Sampler().sizes is None
    assert Sampler().edited(steps=6).sizes == Count(count=6)
    with pytest.raises(ConfigError, match=r"sample\.steps=0"):
        Sampler().edited(steps=0)


@pytest.mark.parametrize(
    ("name", "argument"), [("discrete_interpolants", {"noise": 2.0}), ("infinity", {"length": 64})], ids=["interpolants", "infinity"]
)
def test_arguments_without_effect_are_refused(name: str, argument: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        get(name).config(dict(get(name).tiny) | argument)


def test_guidance_in_an_interval_and_temperature_in_a_line() -> None:
    moments = [Moment(i, 10, i, i + 1, 10) for i in range(10)]
    own = Sampler(guidance=Linear(value=1.5))
    inside = own.edited(guidance_interval=(0.2, 0.5), guidance=3.0).guidance
    assert [inside.on(m) for m in moments] == [0, 0, 3, 3, 3, 3, 0, 0, 0, 0]
    assert own.edited(guidance_schedule="interval").guidance == Interval(value=1.5)
    assert own.edited(guidance_schedule="cosine").guidance == PowerCosine(value=1.5)
    cooled = own.edited(temperature=2.0, temperature_end=1.0).temperature
    assert [cooled.on(m) for m in (moments[0], moments[-1])] == [2.0, 1.0]
    assert own.edited(temperature_end=0.5).temperature.on(moments[0]) == 1.0
    for words, edit in (
        ("guidance_interval=.*goes with guidance_schedule interval", {"guidance_interval": (0, 1), "guidance_schedule": "linear"}),
        ("interval start=0.7, end=0.2", {"guidance_interval": (0.7, 0.2)}),
        ("give two shares", {"guidance_interval": (0.7,)}),
        ("sample.temperature_end=-1", {"temperature_end": -1.0}),
    ):
        with pytest.raises(ConfigError, match=words):
            own.edited(**edit)  # type: ignore[arg-type]


def test_a_table_has_a_factor_of_each_step_and_keeps_the_last() -> None:
    table = Table(value=2.0, factors=(0.0, 0.5))
    assert [table.on(Moment(i, 4, 0, 0, 4)) for i in range(4)] == [0.0, 1.0, 1.0, 1.0]
    fading = Fading(value=10.0, last=0.5, span=0.8)
    assert [fading.on(Moment(i, 4, 0, 0, 4)) for i in (0, 3)] == pytest.approx([10 * 0.75 * (0.5 + 0.8 * 0.75), 0.0])


def test_the_sequence_of_positions_is_chosen_where_the_order_is_open() -> None:
    layout = TokenLayout(grids=((4, 4),), vocabulary=8)
    model = get("halton_maskgit").config({"depth": 1, "width": 16, "heads": 2, "steps": 4}).build(layout, 3)
    raster, halton, random = (
        torch.cat([step.place_Bn[0] for step in model.decode_steps(ask, model.sampler.edited(order=order), SampleDraws.of(0, 0, 1))])
        for ask in [Labels(torch.tensor([1]))]
        for order in ("raster", "halton", "random")
    )
    assert raster.tolist() == list(range(16))
    assert len({tuple(raster.tolist()), tuple(halton.tolist()), tuple(random.tolist())}) == 3
    assert sorted(halton.tolist()) == sorted(random.tolist()) == list(range(16))
    model.check_sampler(model.sampler.edited(order="raster"))
    for name in ("raster", "maskgit"):
        closed = get(name).config({"depth": 1, "width": 16, "heads": 2}).build(layout, 3)
        with pytest.raises(ConfigError, match=r"sample\.order=Halton sequence: the order of this model, .*, is not open to another"):
            closed.check_sampler(closed.sampler.edited(order="halton"))

"""Heads of continuous tokens: what they draw is distributed as what they were trained on, and MAR's order is any."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from half_circles import NOW, PLAIN, WIDTH, energy, hidden_of, moons
from zoo import CLASSES, early

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.flows.matching import FlowSampler
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.consistency import Consistency, ConsistencySampler
from tokenloom.models.parts.heads.energy import EnergySampler, EnergyScore
from tokenloom.models.parts.heads.flow import FlowMatching
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.inner import InnerMixture
from tokenloom.models.parts.heads.mixture import Mixture, MixtureSampler, redrawn
from tokenloom.models.parts.heads.shortcut import Shortcut, ShortcutSampler
from tokenloom.models.parts.orders import Masked
from tokenloom.models.parts.plan import Plan
from tokenloom.models.pretrained.parity import calls_of
from tokenloom.models.sampling.filters import inverse
from tokenloom.models.sampling.sampler import Sampler

HEADS: dict[str, tuple[Head.Config, Any]] = {
    "energy": (EnergyScore.Config(width=64, depth=2, repeats=8, noise=8), EnergySampler()),
    "inner_mixture": (InnerMixture.Config(width=32, heads=2, components=6), MixtureSampler()),
    "flow": (FlowMatching.Config(width=64, depth=2, repeats=4, frequencies=64), FlowSampler(steps=20)),
    "shortcut": (Shortcut.Config(width=64, depth=2, repeats=5, consistent=2, finest=16, frequencies=64), ShortcutSampler(steps=8)),
    "consistency": (Consistency.Config(width=64, depth=2, repeats=8, levels=(10, 40), frequencies=64), ConsistencySampler(steps=2)),
}
#: Ways of drawing besides: the law is the same.
ALSO: dict[str, tuple[str, Any]] = {
    "flow_heun": ("flow", FlowSampler(steps=10, solver="heun")),
    "flow_sde": ("flow", FlowSampler(steps=40, solver="sde")),
}


@cache
@torch.enable_grad()
def trained(name: str) -> Head:
    """The head after some hundred steps on two half circles."""
    torch.manual_seed(0)
    head = HEADS[name][0].build(PLAIN, WIDTH, None)  # type: ignore[arg-type]
    optimizer, steps, rows = torch.optim.Adam(head.parameters(), lr=3e-3), 200, 96
    for index in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - index / steps)
        which = torch.arange(rows) % 2
        points = SampleDraws.of(index, 0, rows)
        target = torch.where(which[:, None] == 0, moons(points, 0), moons(points, 1))
        optimizer.zero_grad()
        head.loss(hidden_of(which), target[:, None], Draws.whole(0, index, rows)).mean().backward()
        optimizer.step()
    return head.eval()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n == "consistency" else n for n in (*HEADS, *ALSO)])
def test_samples_are_distributed_as_the_data(name: str) -> None:
    """Between 1000 samples and data the distance is at most that of shifting the data by a fifth of the circle's radius."""
    name, own = ALSO.get(name, (name, HEADS.get(name, (None, None))[1]))
    rows, sampler = 1000, Sampler(head=own)
    for which in (0, 1):
        hidden = Hidden(hidden_of(torch.full((rows,), which)))
        with torch.no_grad():
            drawn = trained(name).draw(hidden, sampler, NOW, SampleDraws.of(which, 0, rows)).data[:, 0]
        data = moons(SampleDraws.of(7, 0, rows), which)
        assert energy(drawn, data) < energy(data + 0.2, moons(SampleDraws.of(8, 0, rows), which))
        assert energy(drawn, data) < 0.2 * energy(data, moons(SampleDraws.of(9, 0, rows), 1 - which))


@torch.no_grad()
def test_a_consistency_head_leaves_a_token_without_noise_as_it_is() -> None:
    torch.manual_seed(0)
    head = Consistency.Config(width=16, depth=1).build(PLAIN, WIDTH, None)  # type: ignore[arg-type]
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, h = torch.randn(5, 1, 2), torch.randn(5, 1, WIDTH)
    least = head.grid(11, x)[0].expand(5, 1)  # type: ignore[attr-defined]
    torch.testing.assert_close(head(x, least, h), x, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(head(x, 50 * least, h), x, atol=1e-2)
    levels = head.grid(41, x)  # type: ignore[attr-defined]
    assert bool((levels[1:] > levels[:-1]).all())
    assert float(levels[-1]) == pytest.approx(80.0, rel=1e-4)


@torch.no_grad()
def test_one_step_of_a_shortcut_is_worth_many_and_one_of_a_flow_is_not() -> None:
    """A flow's single step lands on the mean of a half circle's points; a shortcut's on the half circle."""
    rows, which = 1000, 0
    hidden, data = Hidden(hidden_of(torch.zeros(rows, dtype=torch.int64))), moons(SampleDraws.of(7, 0, rows), which)
    found = {}
    for name, own in (("flow", FlowSampler(steps=1)), ("shortcut", ShortcutSampler(steps=1)), ("shortcut", ShortcutSampler(steps=16))):
        drawn = trained(name).draw(hidden, Sampler(head=own), NOW, SampleDraws.of(0, 0, rows)).data[:, 0]
        found[name, own.steps] = energy(drawn, data)
    assert found["shortcut", 1] < 0.35 * found["flow", 1], found
    assert found["shortcut", 16] < 0.35 * found["flow", 1], found


@torch.no_grad()
def test_a_shortcut_learns_to_agree_with_two_steps_of_half_the_length() -> None:
    head: Any = trained("shortcut")
    x, h = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), hidden_of(torch.arange(200) % 2)[:, 0]
    for level in (0, 1, 2):
        at, time = torch.full((200,), level), torch.zeros(200)
        one, two = head.step(x, time, at, h), head.two_steps(x, time, at, h)
        assert float((one - two).square().mean()) < 0.1 * float(two.var(0).mean()), level
    with pytest.raises(ConfigError, match="at most 16"):
        head.check_sampler(Sampler(head=ShortcutSampler(steps=32)))
    with pytest.raises(ConfigError, match="power of two"):
        ShortcutSampler(steps=6)


# --- MAR


def test_what_mar_predicts_does_not_depend_on_the_order_in_which_tokens_became_known() -> None:
    model = early("mar").eval()
    assert isinstance(model, GroupGenerator)
    assert isinstance(model.order, Masked)
    labels, length = Labels(torch.arange(2) % CLASSES), model.layout.length
    given = SampleDraws.of(3, 0, 2).normal("x", 0, length, model.layout.channels)
    first, last = torch.arange(length - 2).flip(0), torch.tensor([length - 2, length - 1])
    found = []
    for head in (first, first.flip(0), first.roll(3)):
        plan = Plan(torch.cat([head, last])[None], (*[1] * len(head), 2))
        steps = list(model.decode_steps(labels, model.sampler.edited(guidance=0.0), SampleDraws.of(0, 0, 2), forced=given, plan=plan))
        found.append(steps[-1].h_BnD)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    moved = given.clone()
    moved[:, 0] += 1
    steps = list(model.decode_steps(labels, model.sampler.edited(guidance=0.0), SampleDraws.of(0, 0, 2), forced=moved, plan=plan))
    assert not torch.allclose(steps[-1].h_BnD, found[0]), "what is known is seen"


def test_mar_masks_one_share_a_batch_and_at_least_seven_tenths() -> None:
    model = early("mar")
    assert isinstance(model, GroupGenerator)
    shares = []
    for index in range(20):
        known = model.order.plan(model.layout, Draws.whole(0, index, 8)).known_BL
        assert known is not None
        assert len(set(known.sum(1).tolist())) == 1
        shares.append(1 - float(known.float().mean()))
    assert min(shares) >= 0.68
    assert len(set(shares)) > 2


@torch.no_grad()
def test_an_energy_score_is_drawn_from_guided_hidden_states() -> None:
    torch.manual_seed(0)
    head = EnergyScore.Config(width=16, depth=1, noise=4).construct(PLAIN, 8)
    for parameter in head.parameters():
        parameter += 0.1 * torch.randn(parameter.shape)
    h, null = torch.randn(2, 5, 3, 8)

    def drawn(hidden: Hidden) -> torch.Tensor:
        return head.draw(hidden, Sampler(), NOW, SampleDraws.of(0, 0, 5)).data

    torch.testing.assert_close(drawn(Hidden(h, null, 1.5)), drawn(Hidden(2.5 * h - 1.5 * null, None, 0.0)))
    assert not torch.allclose(drawn(Hidden(h, null, 1.5)), drawn(Hidden(h, None, 0.0)), atol=0.01)


# --- features one by one


def mixtures(**config: Any) -> InnerMixture:
    """An untrained head whose features hang on each other, with small means, so that a grid covers all that it draws."""
    torch.manual_seed(0)
    head = InnerMixture.Config(width=16, heads=2, components=3, **config).construct(2, WIDTH)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


@torch.no_grad()
@pytest.mark.parametrize("together", [1, 2])
def test_an_inner_mixture_is_a_density_and_its_draws_have_it(together: int) -> None:
    head, h, side = mixtures(together=together), torch.ones(1, 1, WIDTH), torch.linspace(-12, 12, 241)
    grid = torch.cartesian_prod(side, side)
    p = (-head.loss(h.expand(len(grid), -1, -1), grid[:, None])[:, 0]).exp() * 0.1**2
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    drawn = head.draw(Hidden(h.expand(8000, -1, -1)), Sampler(), NOW, SampleDraws.of(0, 0, 8000)).data[:, 0]
    for what in (lambda x: x, lambda x: x.square(), lambda x: x.prod(1, keepdim=True), torch.sin):
        expected, found = (p[:, None] * what(grid)).sum(0), what(drawn)
        assert bool(((found.mean(0) - expected).abs() < 5 * found.std(0) / 8000**0.5 + 1e-3).all())


@torch.no_grad()
def test_guidance_of_a_mixture_redraws_by_the_likelihoods() -> None:
    """With enough candidates, one feature is drawn from p(x | c)^(1 + w) p(x)^-w."""
    given, null = (Mixture.of(torch.tensor([[mean, 0.3, 0.0, -1.0, 0.5, 0.0]]), 2) for mean in (1.0, 0.0))
    x, weight, rows, count = torch.linspace(-8, 8, 1601)[:, None], 1.5, 4000, 400
    log = (1 + weight) * given.log_prob(x) - weight * null.log_prob(x)
    p = log.softmax(0)
    draws, moment = SampleDraws.of(0, 0, rows), (rows, -1)
    u, noise, chosen = draws.uniform("u", 0, count), draws.normal("n", 0, count, 1), draws.uniform("c", 0)
    many = [Mixture(m.log_weight.expand(moment), m.mean.expand(rows, -1, -1), m.log_variance.expand(rows, -1, -1)) for m in (given, null)]
    found = redrawn(
        many[0], many[1], weight, 1.0, u, noise, chosen, lambda logits, number: inverse(logits.expand(*number.shape, -1), number)
    )[:, 0]
    mean = float((p * x[:, 0]).sum())
    assert float(found.mean()) == pytest.approx(mean, abs=0.08)
    assert float(found.std()) == pytest.approx(float((p * (x[:, 0] - mean).square()).sum().sqrt()), abs=0.08)
    assert abs(mean - float((given.log_prob(x).softmax(0) * x[:, 0]).sum())) > 0.2, "guidance matters"


@torch.no_grad()
def test_cached_features_are_those_of_one_pass() -> None:
    head, h = mixtures(), torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(1))
    with calls_of(head, "run") as calls:
        drawn = head.draw(Hidden(h), Sampler(), NOW, SampleDraws.of(0, 0, 3)).data[:, 0]
    torch.testing.assert_close(torch.cat([output for _, output in calls], 1), head.taught(h[:, 0], drawn))


def test_temperature_and_guidance_move_within_a_token() -> None:
    def at(within: Any, step: int) -> tuple[float, Any]:
        return MixtureSampler(temperature=1.2, within=within).at(step, 4, 2.0)

    assert at("constant", 0) == pytest.approx((1.2, 2.0))
    assert at("linear", 1) == pytest.approx((1.2 + 0.2 * 0.25, 2.0 + 2.0 * 0.25))
    assert at("cosine", 3) == pytest.approx((1.0, 0.0))

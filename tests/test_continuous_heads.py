"""Heads of continuous tokens: what they draw is distributed as what they were trained on, and MAR's order is any."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from test_diffusion_head import NOW, PLAIN, WIDTH, energy, hidden_of, moons
from torch import Tensor
from zoo import CLASSES, early

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.diffusion import Chain, bound, evenly, noisy, reverse, step, strided
from tokenloom.models.parts.heads.base import Head
from tokenloom.models.parts.heads.energy import EnergySampler, EnergyScore
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.parts.heads.iddpm import IDDPM, IDDPMSampler
from tokenloom.models.parts.orders import Masked
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Sampler

HEADS: dict[str, tuple[Head.Config, Any]] = {
    "iddpm": (IDDPM.Config(width=64, depth=2, repeats=4), IDDPMSampler(steps=40, spacing="stride")),
    "energy": (EnergyScore.Config(width=64, depth=2, repeats=8, noise=8), EnergySampler()),
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


@pytest.mark.parametrize("name", HEADS)
def test_samples_are_distributed_as_the_data(name: str) -> None:
    """Between 1000 samples and data the distance is at most that of shifting the data by a fifth of the circle's radius."""
    rows, sampler = 1000, Sampler(head=HEADS[name][1])
    for which in (0, 1):
        hidden = Hidden(hidden_of(torch.full((rows,), which)))
        with torch.no_grad():
            drawn = trained(name).draw(hidden, sampler, NOW, SampleDraws.of(which, 0, rows)).data[:, 0]
        data = moons(SampleDraws.of(7, 0, rows), which)
        assert energy(drawn, data) < energy(data + 0.2, moons(SampleDraws.of(8, 0, rows), which))
        assert energy(drawn, data) < 0.2 * energy(data, moons(SampleDraws.of(9, 0, rows), 1 - which))


def test_temperature_narrows() -> None:
    head, hidden, found = trained("iddpm"), Hidden(hidden_of(torch.zeros(500, dtype=torch.int64))), []
    for temperature in (1.0, 0.3):
        own = replace(HEADS["iddpm"][1], temperature=temperature)
        with torch.no_grad():
            found.append(head.draw(hidden, Sampler(head=own), NOW, SampleDraws.of(0, 0, 500)).data.std(0).sum())
    assert found[1] < 0.9 * found[0], found


def test_a_head_says_which_settings_it_takes() -> None:
    with pytest.raises(ConfigError, match="takes the settings `iddpm`"):
        trained("iddpm").check_sampler(Sampler(head=EnergySampler()))
    with pytest.raises(ConfigError, match="takes the settings `energy`"):
        trained("energy").check_sampler(Sampler(head=IDDPMSampler()))
    with pytest.raises(ConfigError, match=r"sample\.head\.steps=999: no whole stride"):
        IDDPMSampler(steps=999, spacing="stride")


# --- the chain


def eps_of_normal(x: Tensor, signal: float, noise: float, mean: float, std: float) -> Tensor:
    """The expected noise in x_t of data N(mean, std^2)."""
    return noise * (x - signal * mean) / (signal**2 * std**2 + noise**2)


@pytest.mark.parametrize("spacing", [evenly, strided])
def test_the_reverse_chain_of_a_normal_ends_in_it(spacing: Any) -> None:
    """With the exact noise and the smallest variance: mean and deviation of the data, within the standard errors of 20,000 samples and
    the steps' own error, which falls with their number."""
    whole, mean, std = Chain.linear(), 0.7, 0.5
    chain, draws, count = whole.at_times(spacing(1000, 250)), SampleDraws.of(0, 0, 20_000), 1

    def predict(x: Tensor, time: int) -> tuple[Tensor, float]:
        at = whole.at(time)
        return eps_of_normal(x, at["signal"], at["noise"], mean, std), -1.0

    found = reverse(chain, draws.normal("x", 0, count), predict, lambda i: draws.normal(f"step{i}", 0, count))[-1]
    assert abs(float(found.mean()) - mean) < 0.015
    assert abs(float(found.std()) / std - 1) < 0.05


def test_a_chain_over_all_times_is_the_chain() -> None:
    whole = Chain.cosine()
    torch.testing.assert_close(whole.at_times(range(1000)).table(), whole.table())
    assert evenly(1000, 1000) == list(range(1000)) == strided(1000, 1000)
    assert evenly(1000, 12)[-1] == 999
    assert strided(1000, 12)[1] == 84


def test_the_bound_of_a_normal_is_its_entropy() -> None:
    """Bits of x_0 ~ N(0, s^2) by the terms of all times: with exact noise and variance every reverse step is exact, so that the sum is
    the entropy in bins of width 2 / 255, within the standard error of 20,000 samples."""
    chain, std, rows = Chain.linear().at_times(evenly(1000, 20)), 0.4, 20_000
    draws = SampleDraws.of(0, 0, rows)
    x0 = std * draws.normal("x0", 0, 1)
    terms = {"exact": torch.zeros(rows), "smallest": torch.zeros(rows)}
    for index in range(len(chain)):
        at = chain.at(index)
        x = noisy(x0, draws.normal("noise", index, 1), at)
        eps = eps_of_normal(x, at["signal"], at["noise"], 0.0, std)
        unknown = at["mean_x0"] ** 2 * std**2 * at["noise"] ** 2 / (at["signal"] ** 2 * std**2 + at["noise"] ** 2)
        exact = 2 * (math.log(math.exp(at["log_low"]) + unknown) - at["log_low"]) / (at["log_high"] - at["log_low"]) - 1 if index else -1.0
        for name, share in (("exact", exact), ("smallest", -1.0)):
            found = step(x, eps, torch.full_like(x, share), at)
            terms[name] += bound(x0, x, found, at, torch.full((rows,), index == 0))
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(2 / 255)
    assert abs(float(terms["exact"].mean()) - entropy) < 0.03
    assert float(terms["smallest"].mean()) > entropy + 0.1


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

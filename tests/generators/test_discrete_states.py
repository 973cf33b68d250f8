"""Laws of discrete noise and of the generators that undo it: reverse steps, bounds, schedules, in-painting."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from small_generators import PLAIN, grid, small, some
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, TokenLayout, Tokens
from tokenloom.models.generators.discrete_state import DiscreteState
from tokenloom.models.generators.noising import Absorbing, Noise, Uniform
from tokenloom.models.parts.orders import Confidence, CosineCurve
from tokenloom.models.parts.orders.sizes import Even, Steps
from tokenloom.models.sampling.sampler import Constant, Sampler

KINDS: list[Noise] = [Uniform(), Absorbing()]


def states(name: str, layout: TokenLayout, scale: float = 0.0, **arguments: Any) -> DiscreteState:
    model = small(name, layout, scale=scale, **arguments)
    assert isinstance(model, DiscreteState)
    return model


def kernel(noise: Noise, codes: int, keep: float) -> Tensor:
    """(Z, Z) probability of a state after a step that keeps a share, from the state before (rows)."""
    states = codes + noise.extra
    lost = torch.full((states, states), 1 / codes) if isinstance(noise, Uniform) else torch.eye(states)[codes].expand(states, -1)
    step = keep * torch.eye(states) + (1 - keep) * lost
    if noise.extra:
        step[codes] = torch.eye(states)[codes]
    return step


@pytest.mark.parametrize("noise", KINDS)
def test_the_posterior_is_that_of_bayes(noise: Noise) -> None:
    codes, s, t = 3, 0.7, 0.28
    to_s, s_to_t = kernel(noise, codes, s), kernel(noise, codes, t / s)
    joint = to_s[:codes, :, None] * s_to_t[None]  # (x_0, x_s, x_t)
    torch.testing.assert_close(joint.sum(1), kernel(noise, codes, t)[:codes], atol=1e-6, rtol=0)  # the kernels are those of one chain
    given = joint / joint.sum(1, keepdim=True).clamp_min(1e-12)
    p = torch.tensor([0.5, 0.2, 0.3])
    for x in range(codes + noise.extra):
        possible = joint.sum(1)[:, x] > 0
        belief = torch.where(possible, p, 0) if isinstance(noise, Uniform) or x == codes else torch.eye(codes)[x]
        found = noise.posterior(belief[None, None], torch.tensor([[x]]), torch.tensor([[s]]), torch.tensor([[t]]))[0, 0]
        torch.testing.assert_close(found, (belief[:, None] * given[:, :, x]).sum(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("noise", KINDS)
def test_tokens_are_lost_at_the_rate_of_the_kernel(noise: Noise) -> None:
    u, v = torch.rand(2, 1, 60_000, generator=torch.Generator().manual_seed(0)).unbind(0)
    x = noise.corrupt(torch.full((1, 60_000), 2), torch.tensor([[0.4]]), u, v, 4)
    found = x[0].bincount(minlength=4 + noise.extra) / 60_000
    torch.testing.assert_close(found, kernel(noise, 4, 0.4)[2], atol=8e-3, rtol=0)


@pytest.mark.parametrize(("noise", "gap"), [(Uniform(), 2.0), (Absorbing(weight="bound"), 0.1)])
def test_the_loss_bounds_the_likelihood_of_what_is_sampled(noise: Noise, gap: float) -> None:
    layout, steps, codes = TokenLayout(grids=((1, 2),), vocabulary=3), 3, 3
    model = states("vq_ddm", layout, scale=0.1, steps=steps)
    total = codes + noise.extra
    model.config = replace(model.config, noise=noise, curve=CosineCurve())  # the gap of a fresh net is known for this curve
    if noise.extra:
        torch.manual_seed(1)
        model.table.books[0] = torch.nn.Embedding(total, 32)
    worlds = torch.tensor(list(product(range(total), repeat=2)))
    label = Labels(torch.zeros(len(worlds), dtype=torch.int64))
    mass = torch.zeros(len(worlds))
    if noise.extra:
        mass[-1] = 1
    else:
        mass[:] = 1 / len(worlds)
    with torch.no_grad():
        for step in range(steps):  # the chain, state by state
            time = torch.full((len(worlds),), step / steps)
            p = model.logits(worlds, time, label).softmax(-1)
            move = noise.posterior(p, worlds, model._keep(time + 1 / steps), model._keep(time))
            mass = torch.einsum("w,wa,wb->ab", mass, move[:, 0], move[:, 1]).flatten()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
        drawn = model.generate(Labels(torch.zeros(20_000, dtype=torch.int64)), PLAIN, SampleDraws.of(0, 0, 20000)).ids
        found = (drawn[:, 0] * total + drawn[:, 1]).bincount(minlength=total**2) / 20_000
        assert float((found - mass).abs().sum() / 2) < 0.02
        for ids in ([0, 1], [2, 2]):
            rows = 6000
            tokens = Tokens(torch.tensor([ids]).expand(rows, -1), layout)
            batch = Batch(tokens=tokens, conditions=Labels(torch.zeros(rows, dtype=torch.int64)))
            bound = 2 * float(model.losses(batch, "main", Draws.whole(0, 0, rows))["loss"])  # nats a row
            nll = -float(mass[ids[0] * total + ids[1]].log())
            assert nll - 0.05 < bound < nll + gap


def test_only_masked_tokens_count_and_each_alike() -> None:
    noise = Absorbing(weight="even")
    logits = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    ids, x = torch.tensor([[0, 1, 2, 3, 0]] * 2), torch.tensor([[4, 1, 4, 3, 4], [0, 1, 2, 3, 4]])
    loss = noise.loss(logits, ids, x, torch.tensor([[0.5], [0.9]]), torch.tensor([[0.4], [0.8]]), 10)
    torch.testing.assert_close(loss, -2 * logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * (x == 4))


@pytest.mark.parametrize("count", [1, 4, 16])
def test_masked_sampling_shows_as_many_tokens_as_the_curve_says(count: int) -> None:
    model = states("discrete_interpolants", grid(4), scale=0.3, sampling="masked", clock="implicit")
    sampler = Sampler(guidance=Constant(value=0.0), sizes=Steps(count=count))
    before = torch.full((3, 16), 16)
    steps = list(model.states(Labels(torch.arange(3)), sampler, SampleDraws.of(0, 0, 3)))
    assert len(steps) == count
    for i, x in enumerate(steps):
        assert (x == 16).sum(1).tolist() == [int(16 * (1 - (i + 1) / count) + 1e-6)] * 3
        assert torch.equal(x[before != 16], before[before != 16])  # what is shown stays
        before = x


def test_flow_sampling_shows_every_token_by_itself_at_the_rate_of_the_curve() -> None:
    model = states("discrete_interpolants", grid(4), curve="cosine", steps=4)
    steps = list(model.states(Labels(torch.zeros(600, dtype=torch.int64)), PLAIN, SampleDraws.of(0, 0, 600)))
    for i, x in enumerate(steps):
        shown = (x != 16).float()
        keep = model._known((i + 1) / 4)
        assert float(shown.mean()) == pytest.approx(keep, abs=0.015)
        spread = 16 * keep * (1 - keep)  # binomial, not a fixed number
        assert float(shown.sum(1).var()) == pytest.approx(spread, rel=0.25, abs=1e-6)


def test_a_net_without_a_clock_has_no_time() -> None:
    layout = grid(2)
    x, label = torch.full((2, 4), 16), Labels(torch.arange(2))
    for clock, same in (("implicit", True), ("explicit", False)):
        model = states("discrete_interpolants", layout, scale=0.3, clock=clock)
        early, late = (model.logits(x, torch.full((2,), t), label) for t in (0.1, 0.8))
        assert torch.allclose(early, late) == same


@pytest.mark.parametrize(
    ("name", "arguments"), [("vq_ddm", {}), ("discrete_interpolants", {}), ("discrete_interpolants", {"sampling": "masked"})]
)
def test_inpainting_keeps_what_is_given_and_heeds_it(name: str, arguments: dict[str, str]) -> None:
    layout = grid(4)
    model = states(name, layout, scale=0.3, **arguments)
    ids, labels = some(layout, 6)
    keep = torch.arange(16) >= 6  # all known tokens come after the open ones in storage order
    done = [model.inpaint(Tokens(x, layout), keep, labels, PLAIN, SampleDraws.of(0, 0, labels.rows)).ids for x in (ids, (ids + 3) % 16)]
    assert torch.equal(done[0][:, keep], ids[:, keep])
    assert int(done[0].max()) < 16
    assert not torch.equal(done[0][:, ~keep], done[1][:, ~keep])


def test_steps_are_a_choice_of_sampling() -> None:
    model = states("vq_ddm", grid(2), scale=0.3)
    for count in (1, 3, 40):
        sampler = Sampler(guidance=Constant(value=0.5), sizes=Steps(count=count))
        assert len(list(model.states(Labels(torch.arange(3)), sampler, SampleDraws.of(0, 0, 3)))) == count
    with pytest.raises(ConfigError, match=r"^sample\.steps: .* only a number of steps"):
        model.generate(Labels(torch.arange(3)), Sampler(sizes=Even(size=2)), SampleDraws.of(0, 0, 3))
    with pytest.raises(ConfigError, match="choice"):
        replace(model.config, choice=Confidence())
    assert model.likelihood == "none"


def test_the_forward_process_of_vq_ddm_keeps_a_cosine_of_the_noise() -> None:
    """``cos(pi u / 2)`` of the tokens at the share u of the noise: most of it happens late, so an early step loses little."""
    model = states("vq_ddm", grid(2), steps=8)
    u = torch.linspace(0, 1, 9)[:-1]
    torch.testing.assert_close(model._keep(1 - u)[:, 0], (torch.pi / 2 * u).cos(), atol=1e-6, rtol=0)
    ids = torch.zeros((4000, 1), dtype=torch.int64)
    lost, other = torch.rand(2, 4000, 1, generator=torch.Generator().manual_seed(0)).unbind(0)
    kept = model.config.noise.corrupt(ids, model._keep(torch.full((4000,), 0.75)), lost, other, 1000) == 0
    assert float(kept.float().mean()) == pytest.approx(0.9239, abs=0.02)

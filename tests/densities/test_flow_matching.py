"""Flow matching: solvers meet a density whose velocity is known, and generators that denoise group after group are autoregressive."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import early

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.core.protocols import Batch, Labels, Tokens
from tokenloom.models.generators.group_denoiser import GroupDenoiser
from tokenloom.models.parts.flows.matching import FlowSampler, Solver, between, drift, score
from tokenloom.models.parts.orders import Cells, Raster, Subsamples

MEAN, DEVIATION = torch.tensor([1.5, -0.5]), torch.tensor([0.3, 0.8])


def velocity(x: Tensor, t: float) -> Tensor:
    """Of normal data: x_t is normal too, with this mean of data - noise given x_t."""
    variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
    return MEAN + (t * DEVIATION**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 60), ("heun", 20), ("sde", 200)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_solvers_end_in_the_density_of_the_data(solver: Solver, steps: int, shift: float) -> None:
    draw = torch.Generator().manual_seed(0)
    noise = [torch.randn(6000, 2, generator=draw) for _ in range(steps + 1)]
    sampler = FlowSampler(steps=steps, solver=solver, shift=shift, last=0.01)
    x = sampler.walk(noise[-1], velocity, lambda i: noise[i])
    # Mean and deviation of 6000 draws, at five times their standard errors and the solver's own error.
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.07, rtol=0)
    torch.testing.assert_close(x.std(0), DEVIATION, atol=0.05, rtol=0.05)


def test_fewer_steps_are_a_coarser_solution_and_heun_is_of_second_order() -> None:
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    exact = MEAN + DEVIATION * x  # the straight map of normal distributions, which the differential equation follows

    def error(solver: Solver, steps: int) -> float:
        return float((FlowSampler(steps=steps, solver=solver).walk(x, velocity, lambda i: x) - exact).abs().max())

    assert error("euler", 80) < 0.6 * error("euler", 40)
    assert error("heun", 80) < 0.3 * error("heun", 40)
    assert error("heun", 40) < 0.2 * error("euler", 80)
    torch.testing.assert_close(FlowSampler(steps=1).walk(x, velocity, lambda i: x), x + velocity(x, 0.0))


def test_the_score_is_the_gradient_of_the_log_density_and_the_drift_has_it() -> None:
    x, t = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).requires_grad_(), 0.4
    variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
    log_density = (-0.5 * (x - t * MEAN).square() / variance).sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(score(x, velocity(x, t), t), gradient)
    torch.testing.assert_close(drift(x, velocity(x, t), t), velocity(x, t) + (1 - t) * gradient)
    torch.testing.assert_close(between(x, 2 * x, torch.full((7,), t)), (1 + t) * x)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"last": 1.0}, {"shift": 0.0}, {"temperature": -1.0}, {"temperature": math.inf}])
def test_settings_of_no_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
        FlowSampler(**wrong)


# --- group after group

LAYOUT = TokenLayout(grids=((4, 4),), channels=3)


def small(layout: TokenLayout = LAYOUT, **args: Any) -> GroupDenoiser:
    torch.manual_seed(0)
    recipe = registry.get("xar")
    model: GroupDenoiser = recipe.config(dict(recipe.tiny) | args).build(layout=layout, classes=3)  # type: ignore[attr-defined]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("args", [{"entity": "cell", "across": n} for n in (1, 2, 4)] + [{"entity": "subsample", "across": 2}])
def test_each_step_of_cached_decoding_is_the_teacher_forced_pass(args: dict[str, Any]) -> None:
    model = small(**args)
    plan, labels, time = model.order.plan(model.layout, None), Labels(torch.arange(2)), 0.35
    data, noisy = (torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    cond = model.condition(labels)
    cache = model.net.cache(2, 16, cond.vector_BD)
    with torch.no_grad():
        for g in range(plan.groups):
            own = plan.members(g)
            before, now = plan.sequence_BL[:, : plan.start(g)], plan.start(g)
            stepped = model.step(noisy[:, own[0]], time, cond, own, cache)
            for layer in cache:
                layer.truncate(now)
            model.step(data[:, own[0]], 1.0, cond, own, cache)
            # One pass over everything: earlier groups as data, this one noisy, and later ones are not seen.
            x = torch.cat([data[:, before[0]], noisy[:, own[0]], 9 * torch.ones(2, 16 - now - own.shape[1], 3)], 1)
            times = torch.tensor([1.0] * g + [time] + [0.7] * (plan.groups - g - 1)).expand(2, -1)
            whole = model(x, times, labels, plan)[:, now : now + own.shape[1]]
            torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


def test_cells_of_one_position_are_next_token_and_one_cell_is_the_whole_image() -> None:
    cells, raster = Cells(across=4).plan(LAYOUT), Raster().plan(LAYOUT)
    assert cells.sizes == raster.sizes
    assert torch.equal(cells.sequence_BL, raster.sequence_BL)
    assert Cells(across=1).plan(LAYOUT).sizes == (16,)
    assert Cells(across=2).plan(LAYOUT).members(1).tolist() == [[2, 3, 6, 7]]
    assert Subsamples(across=2).plan(LAYOUT).members(1).tolist() == [[1, 3, 9, 11]]
    with pytest.raises(LayoutError, match="across=3"):
        Cells(across=3).plan(LAYOUT)


def test_scales_are_entities_too() -> None:
    layout = TokenLayout(grids=((1, 1), (2, 2), (4, 4)), channels=3)
    model = small(layout, entity="scale")
    tokens = Tokens(torch.randn(4, 21, 3), layout)
    loss = model.losses(Batch(tokens=tokens, conditions=Labels(torch.arange(4) % 3)), "main", Draws.whole(0, 0, 4))["loss"]
    assert bool(loss.isfinite())
    assert model.generate(Labels(torch.arange(2)), model.sampler, SampleDraws.of(0, 0, 2)).data.shape == (2, 21, 3)


def test_guidance_mixes_velocities_and_settings_of_others_are_refused() -> None:
    model: Any = early("xar").eval()
    labels, draws = Labels(torch.arange(2)), SampleDraws.of(0, 0, 2)
    one = replace(model.sampler, head=FlowSampler(steps=1))
    start = torch.cat([draws.normal("head", g, 4, model.layout.channels) for g in range(1)], 1)
    given, null, guided = (
        next(model.groups(of, one.edited(guidance=w, guidance_schedule="constant"), draws)) - start
        for of, w in ((labels, 0.0), (model.condition.null(labels), 0.0), (labels, 1.5))
    )
    torch.testing.assert_close(guided, 2.5 * given - 1.5 * null, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"takes 'flow' alone"):
        model.check_sampler(model.sampler.edited(head={"diffusion": {"steps": 3}}))
    with pytest.raises(ConfigError, match=r"sample\.steps"):
        model.check_sampler(model.sampler.edited(steps=3))
    with pytest.raises(ConfigError, match=r"sample\.temperature"):
        model.check_sampler(model.sampler.edited(temperature=0.5))

"""The diffusion head against its law: what it draws is distributed as what it was trained on."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from half_circles import NOW, PLAIN, WIDTH, energy, hidden_of, moons
from torch import Tensor
from zoo import spec_of

from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels, LayoutError, Tokens
from tokenloom.models.core.registry import get
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion, Schedule, signals, spaced
from tokenloom.models.parts.heads.diffusion import Diffusion, DiffusionSampler
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Sampler

#: The two forms that are published: v with the posterior's variance, and MAR's, the noise with a learned variance.
FORMS: dict[str, dict[str, Any]] = {
    "v": {},
    "eps": {"predicts": "eps", "variance": "learned", "frequencies": 64, "norm": "affine"},
}


@cache
def trained(form: str = "v") -> Diffusion:
    torch.manual_seed(0)
    head = Diffusion.Config(width=64, depth=2, repeats=4, **FORMS[form]).build(PLAIN, WIDTH, None)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    steps, rows = 250, 128
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        which = torch.arange(rows) % 2
        points = SampleDraws.of(step, 0, rows)
        target = torch.where(which[:, None] == 0, moons(points, 0), moons(points, 1))
        optimizer.zero_grad()
        head.loss(hidden_of(which), target[:, None], Draws.whole(0, step, rows)).mean().backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def drawn(head: Diffusion, which: int, rows: int, seed: int = 0, weight: float = 0.0, **settings: Any) -> Tensor:
    h = hidden_of(torch.full((rows,), which))
    null = hidden_of(torch.full((rows,), 1 - which)) if weight else None
    sampler = Sampler(head=DiffusionSampler(**settings))
    return head.draw(Hidden(h, null, weight), sampler, NOW, SampleDraws.of(seed, 0, rows)).data[:, 0]


@pytest.mark.parametrize(("form", "which"), [("v", 0), ("v", 1), ("eps", 0)])
def test_samples_are_distributed_as_the_data(form: str, which: int) -> None:
    """Between 1000 samples and data the distance is at most that of shifting the data by a fifth of the circle's radius, and far from
    that of the other half circle; the mean over four seeds, whose spread is a tenth of the margin."""
    rows = 1000
    found = [
        energy(
            drawn(trained(form), which, rows, seed, spacing="stride" if form == "eps" else "even"),
            moons(SampleDraws.of(99 + seed, 0, rows), which),
        )
        for seed in range(4)
    ]
    data = moons(SampleDraws.of(7, 0, rows), which)
    shifted = energy(data + 0.2, moons(SampleDraws.of(8, 0, rows), which))
    other = energy(moons(SampleDraws.of(7, 0, rows), 1 - which), data)
    mean = sum(found) / len(found)
    spread = max(found) - min(found)
    assert mean + spread < 0.25 * shifted, (found, shifted)
    assert mean < 0.05 * other


def test_few_steps_and_little_noise_are_another_distribution() -> None:
    """The test above would see a chain that is cut short, and one whose noise is damped."""
    data = moons(SampleDraws.of(99, 0, 1000), 0)
    shifted = energy(data + 0.2, moons(SampleDraws.of(8, 0, 1000), 0))
    assert energy(drawn(trained(), 0, 1000, steps=2), data) > shifted
    assert energy(drawn(trained(), 0, 1000, temperature=0.0), data) > energy(drawn(trained(), 0, 1000), data)


def test_guidance_moves_samples_away_from_the_null() -> None:
    plain, guided = drawn(trained(), 0, 500), drawn(trained(), 0, 500, weight=1.0)
    null = moons(SampleDraws.of(3, 0, 500), 1).mean(0)
    assert float((guided.mean(0) - null).norm()) > float((plain.mean(0) - null).norm()) + 0.1


def test_a_sample_alone_is_the_sample_in_a_batch() -> None:
    batch = drawn(trained(), 0, 64, steps=5)
    h = hidden_of(torch.zeros(1, dtype=torch.int64))
    alone = trained().draw(Hidden(h), Sampler(head=DiffusionSampler(steps=5)), NOW, SampleDraws.of(0, 40, 41)).data[:, 0]
    torch.testing.assert_close(alone[0], batch[40], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_noise_grows_from_almost_none_to_almost_all(schedule: Schedule) -> None:
    signal = signals(schedule, torch.device("cpu"))
    assert len(signal) == TIMES + 1
    assert float(signal[-1]) == 1, "index -1 is the data"
    assert bool((signal[1:-1] < signal[:-2]).all())
    assert float(signal[0]) > 0.999
    assert float(signal[-2]) < 1e-4


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_step_back_is_bayes_rule(schedule: Schedule) -> None:
    """q(x_s | x_t, x_0) against the product of two normal densities on a grid, for neighbours and for far times."""
    process = GaussianDiffusion(schedule=schedule, predicts="eps")
    x_s = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    x0, x_t = 0.7, -0.4
    for t, s in ((300, 299), (800, 300), (5, 4)):
        now, then = (float(signals(schedule, torch.device("cpu"))[u]) for u in (t, s))
        kept = now / then
        log_p = -((x_s - then**0.5 * x0) ** 2) / (2 * (1 - then)) - (x_t - kept**0.5 * x_s) ** 2 / (2 * (1 - kept))
        p = log_p.softmax(0)
        mean = float((p * x_s).sum())
        variance = float((p * (x_s - mean) ** 2).sum())
        noise = torch.tensor([(x_t - now**0.5 * x0) / (1 - now) ** 0.5])  # the prediction that means x_0
        for at in ((t, s), (torch.tensor([t]), torch.tensor([s]))):
            found, log_variance = process.back(noise.expand(1, 1), torch.full((1, 1), x_t), *at)
            assert float(found) == pytest.approx(mean, abs=2e-4)
            assert float(log_variance.exp()) == pytest.approx(variance, rel=1e-2)


def test_a_true_prediction_has_no_loss_and_the_bound_trains_variances_alone() -> None:
    draws = Draws.whole(0, 0, 64)
    t, x0, noise = (draws.uniform() * TIMES).long(), 0.5 * draws.normal(2), draws.normal(2)
    t[0] = 0
    for predicts in ("eps", "v"):
        process = GaussianDiffusion(predicts=predicts, variance="learned")  # type: ignore[arg-type]
        x_t, signal = process.noised(x0, noise, t), signals("cosine", t.device)[t].float()[:, None]
        true = noise if predicts == "eps" else signal.sqrt() * noise - (1 - signal).sqrt() * x0
        output = torch.cat([true, torch.full_like(true, -1.0)], -1).requires_grad_()  # the posterior's own variance
        parts = process.losses(output, x0, noise, x_t, t)
        assert float(parts["mse"].detach().max()) < 1e-9
        assert float(parts["vb"][1:].detach().abs().max()) < 1e-3
        wide = process.losses(torch.cat([true, torch.ones_like(true)], -1), x0, noise, x_t, t)["vb"]
        assert float(wide[1:].sum()) > 10 * float(parts["vb"][1:].detach().sum()), "beta is too much where x_0 is known"
        (gradient,) = torch.autograd.grad(parts["vb"].sum(), output)
        assert float(gradient[:, :2].abs().max()) == 0
        assert float(gradient[:, 2:].abs().max()) > 0


def test_times_are_spaced_as_published() -> None:
    assert spaced(12) == [0, 91, 182, 272, 363, 454, 545, 636, 727, 817, 908, 999]
    assert spaced(12, "stride") == [84 * i for i in range(12)]
    assert spaced(TIMES) == spaced(TIMES, "stride") == list(range(TIMES))
    assert spaced(1) == [TIMES - 1]
    with pytest.raises(ConfigError, match="steps=600: no stride"):
        DiffusionSampler(steps=600, spacing="stride")


def spec(**changes: Any) -> ModelSpec:
    """The tiny `raster` over the tiny `kl`, as a run file would have it."""
    codec = spec_of("kl")
    layout = codec.build().layout  # type: ignore[union-attr]
    given = {"layout": layout.to_dict(), "classes": 3, "tokenizer": codec.to_dict()}  # type: ignore[operator]
    head = {"diffusion": {"width": 32, "depth": 2}}
    return ModelSpec("generator", "raster", dict(get("raster").tiny), {"head": head, **changes}, given)


def test_raster_over_latents_trains_and_samples() -> None:
    torch.manual_seed(0)
    model = spec().build()
    assert isinstance(model, GroupGenerator)
    assert model.likelihood == "none"
    label = torch.arange(9) % 3
    data = (label - 1.0)[:, None, None].repeat(1, model.layout.length, model.layout.channels)  # what a class says
    batch = Batch(tokens=Tokens(data, model.layout), conditions=Labels(label))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = model.losses(batch, "main", Draws.whole(0, step, 9, 60))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not idle
    model.eval()
    with torch.no_grad():  # validation draws its noise too
        assert bool(model.losses(batch, "main", Draws.whole(1, 0, 9))["loss"].isfinite())
    labels = Labels(torch.arange(3))
    sampler = model.sampler.edited(guidance=0.5, head={"diffusion": {"steps": 4}})
    model.check_sampler(sampler)
    first, other = (model.generate(labels, sampler, SampleDraws.of(s, 0, 3)) for s in (0, 1))
    assert first.data.shape == (3, model.layout.length, model.layout.channels)
    assert bool((first.data != other.data).all())
    kept = torch.arange(model.layout.length) < 4
    painted = model.inpaint(first, kept, labels, sampler, SampleDraws.of(1, 0, 3))
    assert torch.equal(painted.data[:, :4], first.data[:, :4])


def test_several_positions_may_share_a_hidden_state() -> None:
    h, target = torch.randn(2, 3, WIDTH), torch.randn(2, 3, 4, 2)
    together = trained().loss(h, target, Draws.whole(0, 0, 2))
    apart = trained().loss(h.repeat_interleave(4, 1), target.flatten(1, 2), Draws.whole(0, 0, 2))
    assert together.shape == (2, 3, 4)
    assert torch.equal(together.flatten(1), apart)


def test_settings_are_checked_before_work() -> None:
    model = spec().build()
    raster = ModelSpec("generator", "raster", dict(get("raster").tiny), {}, spec_of("raster").given).build()
    for built, given, message in (
        (model, {"diffusion": {"steps": 0}}, "steps=0"),
        (model, {"diffusion": {"stepz": 3}}, "sample.head.diffusion: unknown field 'stepz'"),
        (model, {"flows": {}}, "sample.head: .* write one of .*diffusion"),
        (raster, {"diffusion": {}}, "sample.head=.*Categorical has no settings"),
    ):
        with pytest.raises(ConfigError, match=message):
            built.check_sampler(built.sampler.edited(head=given))  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match=r"set\.head: .* write one of .*diffusion"):
        spec(head={"diffuse": {}}).build()
    with pytest.raises((ConfigError, LayoutError), match="needs continuous tokens"):
        replace(spec(), given=spec_of("raster").given).build()
    with pytest.raises(ValueError, match="needs draws"):
        trained().loss(hidden_of(torch.zeros(1, dtype=torch.int64)), torch.zeros(1, 1, 2))


def test_the_default_sampler_has_the_identity_that_it_had() -> None:
    assert "head" not in Sampler().to_dict()
    assert Sampler(head=DiffusionSampler()).to_dict()["head"]["type"] == "head_sampler.diffusion"

"""Laws of exact densities: flows invert and their log-determinant is the Jacobian's; levels inside levels sum up."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from zoo import batch_of, early

from tokenloom.models.core import registry, signals
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Labels
from tokenloom.models.parts.flows.autoregressive import AutoregressiveFlow, FlowGuidance
from tokenloom.models.parts.flows.convolutional import ActNorm, ZeroConv
from tokenloom.models.pretrained.parity import calls_of
from tokenloom.models.zoo.densities.fractalgen.module import FractalGen, FractalSampler
from tokenloom.models.zoo.densities.glow.module import Glow
from tokenloom.models.zoo.densities.tarflow.module import STEP, TarFlow


def flow(flipped: bool = True, length: int = 5, channels: int = 3) -> AutoregressiveFlow:
    """A flow far from the identity."""
    torch.manual_seed(0)
    made = AutoregressiveFlow.Config(width=16, depth=1, head_width=8).build(length, channels, 2, flipped)
    torch.nn.init.normal_(made.out.weight, std=0.2)
    return made.eval()


@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_flow_inverts(kind: torch.dtype, close: float, flipped: bool) -> None:
    made, label = flow(flipped).to(kind), torch.tensor([0, -1, 1])
    made.affine = lambda h: tuple(made.out(h).chunk(2, -1))  # type: ignore[method-assign]  # in the type at hand
    x = SampleDraws.of(0, 0, 3).normal("x", 0, 5, 3).to(kind)
    with torch.no_grad():
        z, _ = made(x, label)
        assert float((z - x).abs().max()) > 0.1
        assert float((made.inverse(z, label) - x).abs().max()) < close
        assert float((made(made.inverse(x, label), label)[0] - x).abs().max()) < close


def test_the_log_determinant_is_the_jacobians() -> None:
    made, label = flow(), torch.tensor([1])
    x = SampleDraws.of(0, 0, 1).normal("x", 0, 5, 3)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x.view(1, 5, 3), label)[0].flatten(), x.flatten())
    torch.testing.assert_close(made(x, label)[1][0], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-4, rtol=1e-4)


def test_guidance_moves_samples_and_none_does_not() -> None:
    made, label = flow(), torch.tensor([0, 1])
    torch.nn.init.normal_(made.classes)
    z = SampleDraws.of(0, 0, 2).normal("z", 0, 5, 3)
    with torch.no_grad():
        plain = made.inverse(z, label)
        assert torch.equal(made.inverse(z, label, FlowGuidance(weight=0.0)), plain)
        both = made.inverse(z, label, FlowGuidance(weight=1.0))
        only = made.inverse(z, label, FlowGuidance(weight=1.0, what="b"))
    assert not torch.allclose(both, plain)
    assert not torch.allclose(only, both)
    torch.testing.assert_close(both[:, -1], plain[:, -1], msg="the first patch of the flow's order stays")


def test_tarflows_likelihood_is_the_change_of_variables_of_the_whole_stack() -> None:
    torch.manual_seed(0)
    config = registry.get("tarflow").config({"width": 16, "depth": 1, "head_width": 8, "flows": 3, "patch": 2, "classes": 0})
    model = config.build(signal=signals.image(4, 1)).eval()
    assert isinstance(model, TarFlow)
    for part in model.flows:
        torch.nn.init.normal_(part.out.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    x = (SampleDraws.of(0, 0, 1).uniform("x", 0, 1, 4, 4) * 255).round() / 127.5 - 1
    noised = x + STEP * (Draws.whole(0, 0, 1).uniform(1, 4, 4) - 0.5)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v.view(1, 1, 4, 4), None)[0].flatten(), noised.flatten())
    z = model(noised, None)[0]
    expected = -0.5 * (z.square() + math.log(2 * math.pi)).sum() + torch.linalg.slogdet(jacobian).logabsdet + 16 * math.log(STEP)
    torch.testing.assert_close(model.log_prob(Batch(signal=x), Draws.whole(0, 0, 1))[0], expected, atol=1e-3, rtol=1e-4)


# --- Glow


def glow(**changes: object) -> Glow:
    torch.manual_seed(0)
    model = registry.get("glow").config({"scales": 2, "steps": 2, "width": 8} | changes).build(signal=signals.image(4, 1)).eval()
    assert isinstance(model, Glow)
    for part in model.modules():  # away from the zeros of the start
        if isinstance(part, ZeroConv):
            torch.nn.init.normal_(part.conv.weight, std=0.1)
    return model


@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("changes", [{}, {"coupling": "additive", "mixing": "full"}])
def test_glow_inverts(changes: dict[str, str], kind: torch.dtype, close: float) -> None:
    model, x = glow(**changes).to(kind), SampleDraws.of(0, 0, 3).uniform("x", 0, 1, 4, 4).to(kind) - 0.5
    with torch.no_grad():
        model.start(x)
        assert float((model.inverse(model(x)[0]) - x).abs().max()) < close


@pytest.mark.parametrize("changes", [{}, {"coupling": "additive", "mixing": "full"}])
def test_glows_log_determinant_is_the_jacobians(changes: dict[str, str]) -> None:
    model, x = glow(**changes), SampleDraws.of(0, 0, 4).uniform("x", 0, 1, 4, 4) - 0.5
    model.start(x)
    both = torch.autograd.functional.jacobian(lambda v: torch.cat([z.flatten() for z in model(v.view(1, 1, 4, 4))[0]]), x[0].flatten())
    torch.testing.assert_close(model(x[:1])[2][0], torch.linalg.slogdet(both).logabsdet, atol=1e-4, rtol=1e-4)


def test_glow_starts_with_standardised_channels() -> None:
    model, x = glow(), 3 + 5 * SampleDraws.of(0, 0, 64).uniform("x", 0, 1, 4, 4)
    model.start(x)
    norm = model.flows[0].parts[0]  # type: ignore[union-attr, index]
    y = norm(torch.nn.functional.pixel_unshuffle(x, 2))[0]
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


# --- FractalGen


def fractal(**changes: object) -> FractalGen:
    torch.manual_seed(0)
    args = {"sides": (4, 2, 1), "widths": (16, 16, 8), "depths": (1, 1, 1), "heads": (2, 2, 2), "steps": (2, 2), "classes": 2} | changes
    model = registry.get("fractalgen").config(args).build(signal=signals.image(4, 1)).eval()
    assert isinstance(model, FractalGen)
    return model


def pixels(rows: int = 2) -> Tensor:
    return (SampleDraws.of(0, 0, rows).uniform("x", 0, 1, 4, 4) * 255).round() / 127.5 - 1


def test_a_raster_fractals_likelihood_is_the_sum_of_its_pixels_and_its_training_loss() -> None:
    """Of images of one channel the training loss is the mean over pixels of what log_prob sums, and later pixels change nothing before
    them."""
    model, x, label = fractal(), pixels(), torch.tensor([0, 1])
    batch = Batch(signal=x, conditions=Labels(label))
    with torch.no_grad():
        whole = model.log_prob(batch, Draws.whole(0, 0, 2))
        loss = model.trained(model._standardised(x), model.roots(label, 2), [None, None])
    torch.testing.assert_close(-whole.mean() / 16, loss)
    assert model.likelihood == "exact"
    found = []
    for value in (-1.0, 1.0):  # the last pixel of the last patch
        other = x.clone()
        other[:, :, 3, 3] = value
        with torch.no_grad(), calls_of(model.pixels, "nll") as calls:
            model.log_prob(Batch(signal=other, conditions=Labels(label)), Draws.whole(0, 0, 2))
        found.append(calls[0][1].view(2, 16))
    torch.testing.assert_close(found[0][:, :15], found[1][:, :15])
    assert not torch.allclose(found[0][:, 15], found[1][:, 15])


def test_probabilities_of_a_raster_fractal_sum_to_one() -> None:
    """Over all 256 values of the last pixel, given the others."""
    model, x = fractal(), pixels(1).repeat(256, 1, 1, 1)
    x[:, 0, 3, 3] = torch.arange(256) / 127.5 - 1
    with torch.no_grad():
        every = model.log_prob(Batch(signal=x), Draws.whole(0, 0, 256))
        last = every - every.logsumexp(0)
        # What is left after the last pixel's share is the probability of the others, which is below one.
        assert float(every.logsumexp(0)) < 0
    assert float(last.exp().sum()) == pytest.approx(1, abs=1e-4)
    head = model.pixels.logits(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 16))
    assert head.shape == (1, 1, 256)


@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_sampling_uses_what_the_likelihood_uses(kind: str) -> None:
    """The logits of each pixel in sampling are those of the likelihood of the image that is drawn, in the same order."""
    model = fractal(kind=kind)
    model = FractalGen(replace(model.config, sampler=FractalSampler(threshold=0.0)), model.shape).eval()
    draws, seen = SampleDraws.of(0, 0, 1), []

    def choose(logits: Tensor, inner: SampleDraws, channel: int) -> Tensor:
        value = (inner.uniform("value", channel, 1)[:, 0] * 256).long()
        seen.append(logits.log_softmax(-1).gather(-1, value[:, None]).sum())
        return value

    orders: list[Tensor] = []
    original = SampleDraws.uniform

    def uniform(self: SampleDraws, stream: str, step: int | Tensor, *shape: int) -> Tensor:
        found = original(self, stream, step, *shape)
        if stream == "order":
            orders.append(found)
        return found

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleDraws, "uniform", uniform)
        value = model.drawn(torch.tensor([1]), draws, choose)
    x = value / 127.5 - 1
    if kind == "ar":
        with torch.no_grad():
            found = model.log_prob(Batch(signal=x, conditions=Labels(torch.tensor([1]))), Draws.whole(0, 0, 1))
        torch.testing.assert_close(found[0], torch.stack(seen).sum(), atol=1e-3, rtol=1e-4)
        return
    assert len(orders) == 1 + 2, "one for the image, one for the patches of each step"
    assert model.likelihood == "bound"
    assert bool(torch.stack(seen).isfinite().all())


def test_bits_of_a_masked_fractal_depend_on_the_order_alone() -> None:
    model = fractal(kind="mar", guide=True)
    batch = Batch(signal=pixels(), conditions=Labels(torch.tensor([0, 1])))
    with torch.no_grad():
        first, again, other = (model.log_prob(batch, Draws.whole(seed, 0, 2)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_early_densities_have_gradients_where_they_sample() -> None:
    model = early("tarflow")
    assert isinstance(model, TarFlow)
    x = batch_of(model).signal
    assert x is not None
    moved = TarFlow(replace(model.config, noise=0.3), model.shape)
    moved.load_state_dict(model.state_dict())
    label = torch.zeros(len(x), dtype=torch.int64)
    assert float((moved.denoised(x + 0.3 * SampleDraws.of(0, 0, len(x)).normal("n", 0, *x.shape[1:]), label) - x).std()) < 0.3, "less noise"


def test_guidance_does_not_raise_what_the_condition_finds_unlikely() -> None:
    """A value below the threshold is at most as far behind the likeliest one as without guidance; without a threshold it may overtake."""
    logits, null = torch.tensor([[5.0, 4.0, -3.0]]), torch.tensor([[5.0, 4.0, -30.0]])
    kept = FractalSampler(threshold=0.01).guided(logits, null, 3.0)
    free = FractalSampler(threshold=0.0).guided(logits, null, 3.0)
    assert float(free[0, 2]) > float(free[0, 0])
    assert float(kept[0, 0] - kept[0, 2]) == pytest.approx(8.0)
    torch.testing.assert_close(kept[0, :2], free[0, :2])
    torch.testing.assert_close(FractalSampler(sharpness=2.0).guided(logits, None, 0.0), 2 * logits)


@pytest.mark.parametrize("name", ["glow", "flowpp"])
def test_norms_start_from_the_whole_first_step_in_however_many_parts(name: str) -> None:
    torch.manual_seed(0)
    recipe = registry.get(name)
    model: Any = recipe.config(dict(recipe.tiny)).build(signal=signals.image(8, 1)).train()  # type: ignore[attr-defined]
    signal = 0.1 + 0.5 * SampleDraws.of(0, 0, 6).uniform("x", 0, 1, 8, 8).mul(2).sub(1)

    def norms(of: Any) -> torch.Tensor:
        return torch.cat([torch.cat([p.shift, p.scale]).flatten() for p in of.modules() if isinstance(p, ActNorm)])

    found = []
    for cuts in ((0, 6), (0, 2, 6)):
        each = copy.deepcopy(model)
        for start, stop in pairwise(cuts):
            each.losses(Batch(signal=signal[start:stop]), "main", Draws(0, 0, 1, start, stop, 6))
        assert torch.equal(norms(each), norms(model))
        each.after_step(Draws.whole(0, 0, 6))
        assert bool(each.started)
        found.append(norms(each))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], norms(model))

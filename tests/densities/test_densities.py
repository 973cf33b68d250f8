"""Defining properties of densities: their values have probabilities that sum to one, their bounds are bounds and tighten."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from zoo import ROWS, batch_of, early, trained

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.zoo.densities.iwae.module import IWAE, LEVELS, log_logistic

VALUES = torch.arange(LEVELS, dtype=torch.float64) * 2 / (LEVELS - 1) - 1


def iwae(name: str = "iwae") -> IWAE:
    model = early(name).eval()
    assert isinstance(model, IWAE)
    return model


@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.999, 4.0])
@pytest.mark.parametrize("log_scale", [-6.5, -3.0, 0.0, 3.0])
def test_probabilities_of_all_values_sum_to_one(mean: float, log_scale: float) -> None:
    every = [torch.full((LEVELS,), value, dtype=torch.float64) for value in (mean, log_scale)]
    assert float(log_logistic(VALUES, *every).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_far_values_have_a_finite_likelihood_and_a_gradient() -> None:
    mean, log_scale = torch.tensor([5.0], requires_grad=True), torch.tensor([-7.0], requires_grad=True)
    found = log_logistic(torch.tensor([-1.0]), mean, log_scale)
    found.sum().backward()
    assert bool(found.isfinite())
    assert float(cast(Tensor, mean.grad)) < 0  # nearer is likelier


def joint(model: IWAE, signal: Tensor, z_MZ: Tensor) -> Tensor:
    """(B, M) log p(x, z) with all constants, in float64."""
    mean_MN, log_scale_MN = model.decoder(z_MZ).chunk(2, dim=-1)
    prior_M = -0.5 * z_MZ.square().sum(1) - 0.5 * z_MZ.shape[1] * math.log(2 * math.pi)
    return log_logistic(signal.flatten(1)[:, None], mean_MN, log_scale_MN).sum(-1) + prior_M


@torch.no_grad()
def test_bounds_tighten_with_more_latents_and_stay_below_the_likelihood() -> None:
    """One number as latent, so that the likelihood is an integral that can be computed; the encoder says nothing of the image."""
    torch.manual_seed(0)
    config = registry.get("iwae").config({"latent": 1, "width": 8, "depth": 1})
    model = cast(IWAE, config.build(signal=signals.image(2, 1))).double().eval()  # type: ignore[attr-defined]
    for part in model.decoder.parameters():
        nn.init.normal_(part)
    for part in model.encoder.parameters():
        nn.init.zeros_(part)
    cast(nn.Linear, model.encoder[-1]).bias.copy_(torch.tensor([0.0, 0.1]))  # latents a little wider than the prior's
    signal = VALUES[torch.tensor([[3, 200, 90, 17], [255, 128, 0, 60]])].view(2, 1, 2, 2)
    grid = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None]
    exact_B = joint(model, signal, grid).logsumexp(1) + math.log(float(grid[1] - grid[0]))
    many = 4000
    bounds = {}
    for k in (1, 5, 50):
        rows = Batch(signal=signal.repeat_interleave(many, 0))
        bounds[k] = model.log_prob(rows, Draws.whole(0, k, 2 * many), samples=k).view(2, many)
    gap_B = exact_B[:, None] - torch.stack([bounds[k].mean(1) for k in (1, 5, 50)], 1)
    error_B = torch.stack([bounds[k].std(1) / many**0.5 for k in (1, 5, 50)], 1)
    assert bool((gap_B > -4 * error_B).all()), (gap_B, error_B)
    for left, right in ((0, 1), (1, 2)):
        assert bool((gap_B[:, left] - gap_B[:, right] > 4 * torch.hypot(error_B[:, left], error_B[:, right])).all()), (gap_B, error_B)
    assert bool((gap_B[:, 2] < 0.2 * gap_B[:, 0]).all()), gap_B


def test_a_bound_of_many_latents_is_put_together_from_parts() -> None:
    model = iwae().requires_grad_(False)
    batch = batch_of(model)
    draws = Draws.whole(0, 0, ROWS)
    noise = [draws.normal(n, model.config.latent) for n in (16, 4)]
    logw = model.log_weights(model.signal_of(batch), torch.cat(noise, 1))
    whole = model.log_prob(batch, Draws.whole(0, 0, ROWS), samples=20)
    torch.testing.assert_close(whole, logw.logsumexp(1) - math.log(20))
    part = Batch(signal=model.signal_of(batch)[2:5])
    torch.testing.assert_close(model.log_prob(part, Draws(0, 0, 1, 2, 5, ROWS), samples=20), whole[2:5])


def test_training_lowers_the_bits_of_a_value() -> None:
    history = trained("iwae").history
    first, last = (history[i]["main/bits_per_dimension"] for i in (0, -1))
    assert 0 < last < first < 16
    assert all(row["main/loss"] <= row["main/elbo"] + 1e-6 for row in history)  # the bound is above that of one latent


def test_samples_are_distributed_as_the_likelihood_says() -> None:
    """With a decoder that forgets its latent every value has one known distribution."""
    model, rows = iwae().requires_grad_(False), 4000
    last = cast(nn.Linear, model.decoder[-1])
    count = math.prod(model.shape)
    last.weight.zero_()
    last.bias[:count], last.bias[count:] = 0.9, -1.5
    seen = model.sample(None, SampleDraws.of(0, 0, rows)).flatten()
    level = ((seen + 1) * 127.5).round().long()
    share = torch.bincount(level, minlength=LEVELS) / len(level)
    wanted = log_logistic(VALUES, torch.full_like(VALUES, 0.9), torch.full_like(VALUES, -1.5)).exp()
    error = (wanted * (1 - wanted) / len(level)).sqrt()
    assert bool(((share - wanted).abs() < 6 * error + 1e-6).all())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples=0: must be at least 1"):
        registry.get("iwae").config({"samples": 0})

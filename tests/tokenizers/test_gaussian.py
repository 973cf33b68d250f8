"""Continuous latents: divergence, samples from draws, the measured scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.quantizers.gaussian import Gaussian


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(**fields: Any) -> Gaussian:
    quantizer = Gaussian.Config(**({"dim": 3, "kl": 1.0} | fields)).build((2, 4))
    assert isinstance(quantizer, Gaussian)
    return quantizer


def test_divergence_is_that_of_normals() -> None:
    mean, logvar = random(2, 3, 2, 4), 0.3 * random(2, 3, 2, 4, seed=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian.divergence(mean, logvar), expected)


def test_training_samples_from_draws_and_tokens_are_means() -> None:
    quantizer, moments = gaussian().train(), random(8, 6, 2, 4)
    mean, logvar = quantizer.posterior(moments)
    z = quantizer(moments, Draws.whole(0, 3, 8)).z
    noise = Draws.whole(0, 3, 8).normal(3, 2, 4)
    torch.testing.assert_close(z, mean + (0.5 * logvar).exp() * noise)
    assert torch.equal(quantizer(moments).z, mean)  # no draws
    assert torch.equal(quantizer.eval()(moments, Draws.whole(0, 3, 8)).z, mean)
    tokens = quantizer.encode(moments)
    assert tokens.shape == (8, 8, 3)
    assert torch.equal(tokens[0, 5], mean[0, :, 1, 1])
    torch.testing.assert_close(quantizer.lookup(tokens), mean)


def test_shares_of_a_batch_see_the_same_noise() -> None:
    quantizer, moments = gaussian().train(), random(8, 6, 2, 4)
    whole = quantizer(moments, Draws.whole(0, 3, 8)).z
    shares = [quantizer(moments[a:b], Draws(0, 3, 1, a, b, 8)).z for a, b in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat(shares), whole)


def test_scale_is_measured_after_training_or_given() -> None:
    moments = [5 * random(16, 6, 2, 4, seed=s) + 2 for s in range(4)]
    quantizer = gaussian()
    quantizer.finish(iter(moments))
    tokens = torch.cat([quantizer.encode(m) for m in moments])
    assert float(tokens.std()) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(quantizer.lookup(tokens[:16]), quantizer.posterior(moments[0])[0])
    again = gaussian()
    again.load_state_dict(quantizer.state_dict())
    assert float(again.scale) == float(quantizer.scale)
    given = gaussian(scale=0.25)
    given.finish(iter(moments))
    assert float(given.scale) == 0.25


def test_variances_stay_finite() -> None:
    quantizer = gaussian().train()
    moments = torch.full((2, 6, 2, 4), 1e4, requires_grad=True)
    found = quantizer(moments, Draws.whole(0, 0, 2))
    assert bool(found.losses["kl"].isfinite())
    with pytest.raises(ConfigError, match="scale"):
        Gaussian.Config(dim=3, scale=0.0)


def test_latents_are_exact_under_autocast() -> None:
    quantizer, moments = gaussian().eval(), random(2, 6, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(moments.bfloat16())
    assert half.z.dtype == torch.float32
    torch.testing.assert_close(half.losses["kl"], quantizer(moments.bfloat16().float()).losses["kl"])

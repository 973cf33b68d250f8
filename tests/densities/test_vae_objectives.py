"""Laws of objectives beside the bound: what they are for known posteriors, and that likelihoods stay bounds."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.zoo.densities.iwae.module import log_logistic
from tokenloom.models.zoo.densities.vae.module import DensityGap, Information, ObjectiveVAE, Reconstructions, discrepancy, divergence

NAMES = ("infovae", "autogen", "dg_vae")


def model_of(name: str) -> ObjectiveVAE:
    torch.manual_seed(0)
    config = registry.get(name).config({"latent": 1, "width": 8, "depth": 1})
    model = cast(ObjectiveVAE, config.build(signal=signals.image(2, 1))).double().eval()  # type: ignore[attr-defined]
    for part in model.parameters():
        nn.init.normal_(part, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_are_bounds_whatever_was_trained(name: str) -> None:
    model, many = model_of(name), 4000
    signal = torch.tensor([[3.0, 200, 90, 17]]).double().view(1, 1, 2, 2) / 127.5 - 1
    z = torch.linspace(-9, 9, 6001, dtype=torch.float64)[:, None]
    mean, log_scale = model.decoder(z).chunk(2, dim=-1)
    joint = log_logistic(signal.flatten(1), mean, log_scale).sum(-1) - 0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi)
    exact = float(joint.logsumexp(0) + math.log(float(z[1] - z[0])))
    found = model.log_prob(Batch(signal=signal.expand(many, -1, -1, -1)), Draws.whole(0, 0, many), samples=5)
    assert float(found.mean()) <= exact + 4 * float(found.std()) / many**0.5


def test_the_objectives_of_known_posteriors() -> None:
    torch.manual_seed(0)
    mean, log_std, prior = (torch.randn(6, 3).double() * s for s in (1.0, 0.3, 1.0))
    z = mean + log_std.exp() * torch.randn(6, 3).double()
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mean, log_std), kl.double())
    torch.testing.assert_close(Reconstructions(more=3).penalty(z, mean, log_std, prior), kl.double())
    assert Reconstructions(more=3).times == 4
    bound = Information(alpha=0.0, weight=1.0)  # no discrepancy is left: the usual bound
    torch.testing.assert_close(bound.penalty(z, mean, log_std, prior), kl.double())
    alone = Information(alpha=1.0, weight=5.0).penalty(z, mean, log_std, prior)
    torch.testing.assert_close(alone, 5 * discrepancy(z, prior).expand(6))
    assert float(discrepancy(z, z)) == pytest.approx(0, abs=1e-12)
    assert float(discrepancy(z, z + 3)) > 0.1


def test_the_density_gap_is_that_of_the_mixture() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(5, 2).double(), 0.3 * torch.randn(5, 2).double()
    z = mean + log_std.exp() * torch.randn(5, 2).double()
    normal = torch.distributions.Normal
    each = normal(mean, log_std.exp()).log_prob(z[:, None])
    prior = normal(torch.zeros(2).double(), 1.0).log_prob(z)
    whole = each.sum(-1).logsumexp(1) - math.log(5) - prior.sum(1)
    torch.testing.assert_close(DensityGap(of="latents").penalty(z, mean, log_std, z), whole)
    single = (each.logsumexp(1) - math.log(5) - prior).sum(1)
    torch.testing.assert_close(DensityGap(of="numbers").penalty(z, mean, log_std, z), single)
    collapsed = torch.zeros(5, 2).double()
    torch.testing.assert_close(DensityGap(of="latents").penalty(z, collapsed, collapsed, z), torch.zeros(5).double())


def test_weights_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="alpha at most 1"):
        registry.get("infovae").config({"alpha": 2.0})

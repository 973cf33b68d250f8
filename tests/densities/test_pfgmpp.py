"""Laws of Poisson flows in further dimensions: the noise's distribution, the way back, likelihoods, and the limit of diffusion."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.zoo.densities.pfgmpp.module import PFGMPP, STEP, FieldSampler, stable_targets, trajectory
from tokenloom.models.zoo.densities.pfgmpp.unet import UNet

SMALL: dict[str, Any] = {"width": 4, "multipliers": [1], "blocks": 1, "attention": [], "dropout": 0.0}


def model_of(side: int = 2, **changes: Any) -> PFGMPP:
    torch.manual_seed(0)
    config = registry.get("pfgmpp").config(SMALL | changes)
    return cast(PFGMPP, config.build(signal=signals.image(side, 1))).eval()  # type: ignore[attr-defined]


class Towards(nn.Module):
    """In place of the net: the mean of the data given x is always the same image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x: Tensor, sigma: Tensor, *rest: object) -> Tensor:
        return self.image.expand_as(x)


@pytest.mark.parametrize("dims", [8, 200])
def test_noise_has_the_radius_of_the_kernel(dims: int) -> None:
    """|x|^2 / r^2 is a ratio of chi-squares: its odds are beta distributed (N / 2, D / 2)."""
    model, rows = model_of(dims=dims), 6000
    draws = Draws.whole(0, 0, rows)
    noise = model.kernel(draws.normal(1, 2, 2), draws.normal(dims), torch.full((rows,), 3.0)).flatten(1)
    odds = noise.square().sum(1) / (9.0 * dims)
    beta = torch.distributions.Beta(2.0, dims / 2)
    share = odds / (1 + odds)
    assert float(share.mean()) == pytest.approx(float(beta.mean), abs=5 * float(beta.stddev) / rows**0.5)
    assert float(share.var()) == pytest.approx(float(beta.variance), rel=0.2)
    direction = noise / noise.norm(dim=1, keepdim=True)
    torch.testing.assert_close(direction.T @ direction / rows, torch.eye(4) / 4, atol=0.03, rtol=0)


def test_the_prior_is_the_kernels_density_and_its_limit_is_normal() -> None:
    student = torch.distributions.StudentT(5.0, scale=2.0)  # one number: r / sqrt(D) = sigma
    x = torch.linspace(-9, 9, 7)
    torch.testing.assert_close(model_of(dims=5).prior(x[:, None], 2.0), student.log_prob(x))
    normal = torch.distributions.Normal(0.0, 2.0).log_prob(x)
    torch.testing.assert_close(model_of(dims=0).prior(x[:, None], 2.0), normal)
    torch.testing.assert_close(model_of(dims=1 << 16).prior(x[:, None].double(), 2.0), normal.double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dims", [0, 6])
def test_the_likelihood_is_the_kernels_where_the_data_is_one_image(dims: int) -> None:
    model = model_of(dims=dims).double()
    image = torch.tensor([[[[0.1, -0.4], [0.3, 0.0]]]], dtype=torch.float64)
    object.__setattr__(model, "denoised", Towards(image))
    object.__setattr__(model, "config", registry.get("pfgmpp").config(SMALL | {"dims": dims}))
    object.__setattr__(model.config, "sampler", FieldSampler(steps=400, smallest=0.5, largest=4000.0))
    signal = Batch(signal=torch.zeros(3, 1, 2, 2, dtype=torch.float64))
    found = model.log_prob(signal, Draws.whole(0, 0, 3)) - 4 * math.log(STEP)
    x = STEP * (Draws.whole(0, 0, 3).uniform(1, 2, 2).double() - 0.5)
    torch.testing.assert_close(found, model.prior((x - image).flatten(1), 0.5), atol=5e-3, rtol=0)


def test_the_way_back_ends_at_the_data() -> None:
    data = torch.tensor([[0.5, -0.5], [-0.25, 0.75], [0.9, 0.9]], dtype=torch.float64)
    start = torch.randn(16, 2, dtype=torch.float64) * 80

    def mean(x: Tensor, sigma: float) -> Tensor:
        return stable_targets(x, torch.full((len(x),), sigma), data, 24)

    *_, end = trajectory(FieldSampler(), start, mean, lambda i: torch.zeros_like(start))
    near = torch.cdist(end, data).amin(1)
    assert float(near.max()) < 1e-2
    churned = FieldSampler(churn=10.0, noise=1.0)
    draw = torch.Generator().manual_seed(0)
    *_, end = trajectory(churned, start, mean, lambda i: torch.randn(start.shape, generator=draw, dtype=torch.float64))
    assert float(torch.cdist(end, data).amin(1).max()) < 1e-2


def test_targets_are_posterior_means_and_diffusions_in_the_limit() -> None:
    x, data = torch.randn(5, 3).double(), torch.randn(7, 3).double()
    sigma = torch.tensor([0.3, 0.5, 1.0, 2.0, 4.0]).double()
    kernel = ((x[:, None] - data).square().sum(-1) + 10 * sigma[:, None] ** 2) ** (-(3 + 10) / 2)
    torch.testing.assert_close(stable_targets(x, sigma, data, 10), kernel / kernel.sum(1, keepdim=True) @ data)
    limit = stable_targets(x, sigma, data, 1 << 40)
    torch.testing.assert_close(limit, stable_targets(x, sigma, data, 0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "residual", "times": "fourier", "times_multiple": 2, "taps": (1, 3, 3, 1)},
        {"encoder": "skip", "decoder": "skip", "augment": 2},
        {"kind": "adm", "width": 64, "attention": (4,)},
    ],
)
def test_nets_of_all_kinds_give_images_and_use_all_weights(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "dropout": 0.0} | changes
    net = UNet.Config(**given).build(8, 2, 3)
    for part in net.parameters():
        nn.init.normal_(part, std=0.2)
    extra = torch.randn(2, 2) if net.augment is not None else None
    out = net(torch.randn(2, 2, 8, 8), torch.randn(2), torch.eye(3)[:2], extra)
    out.square().mean().backward()
    assert out.shape == (2, 2, 8, 8)
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least two steps"):
        model_of(steps=1)
    with pytest.raises(ConfigError, match="cannot be halved so often"):
        model_of(side=6, multipliers=[1, 1, 1])

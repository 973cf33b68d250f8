"""Laws of mixture couplings and of the dequantisation: inverses, log-determinants, and a bound that is one."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.flows.mixture import Mixture
from tokenloom.models.zoo.densities.flowpp.module import FlowPP, halves, whole

SMALL: dict[str, Any] = {
    "scales": [[0, 1], [1, 1]],
    "width": 8,
    "blocks": 1,
    "components": 3,
    "dequant": 1,
    "drop": 0.0,
    "noise": [2, 4, 4],
}


def model_of(channels: int = 1, side: int = 4, **changes: Any) -> FlowPP:
    torch.manual_seed(0)
    config = registry.get("flowpp").config(SMALL | changes)
    model = cast(FlowPP, config.build(signal=signals.image(side, channels)))  # type: ignore[attr-defined]
    for name, part in model.named_parameters():
        if "matrix" not in name:
            nn.init.normal_(part, mean=1.0 if name.endswith(("scale", "size")) else 0.0, std=0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("attention", ["yes", "no"])
def test_flows_invert(dtype: torch.dtype, bound: float, attention: str) -> None:
    model = model_of(2, attention=attention).to(dtype)
    x = torch.randn(3, *model.shape, dtype=dtype)
    torch.testing.assert_close(model.inverse(model(x)[0]), x, atol=bound * max(1.0, float(x.abs().max())), rtol=bound)


def test_the_log_determinants_are_the_jacobians() -> None:
    model = model_of(2).double()
    x = torch.randn(1, *model.shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v)[0], x).view(x.numel(), x.numel())
    assert float(model(x)[1].detach()) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)
    image = torch.rand(1, *model.shape, dtype=torch.float64)
    whole_way = torch.autograd.functional.jacobian(lambda n: model.dequantized(image, n)[0] * 256, x).view(x.numel(), x.numel())
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum()
    wanted = float(torch.linalg.slogdet(whole_way).logabsdet - normal)  # -log q(u | x)
    assert float(model.dequantized(image, x)[1].detach()) == pytest.approx(wanted, abs=1e-9)
    inside = torch.rand(1, 5, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(lambda v: FlowPP.logits(v)[0], inside).view(5, 5).diagonal().log().sum()
    assert float(FlowPP.logits(inside)[1]) == pytest.approx(float(slope), abs=1e-9)


def test_a_mixtures_logit_is_that_of_its_distribution_and_inverts_in_the_tails() -> None:
    torch.manual_seed(0)
    logits, means, log_scales = torch.randn(3, 1, 4, 1, 1, 61, dtype=torch.float64)
    mixture = Mixture(logits[:, :, :], means, log_scales)
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)[None, None, None]
    share = logits.softmax(1)
    below = (share * ((x[:, None] - means) / log_scales.exp()).sigmoid()).sum(1)
    found, log = mixture.logit(x)
    near = slice(28, 33)
    torch.testing.assert_close(found[..., near], below.logit()[..., near])
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mixture.logit(point)[0].sum(), point)
    torch.testing.assert_close(log, slope.log())
    torch.testing.assert_close(mixture.inverse(found), x, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_the_bound_is_below_the_likelihood_of_all_values_together() -> None:
    """Of one row of two pixels: over all pairs of values the bound's exponentials sum to less than one, and importance weights to one."""
    model = model_of(side=2, scales=[[0, 1]], attention="no", components=1)
    level = torch.arange(256.0)
    for seed in range(2):
        first = torch.cartesian_prod(level, level[seed::32])
        rest = torch.tensor([[100.0, 200.0]]).expand(len(first), -1)
        image = torch.cat([first, rest], 1).view(-1, 1, 2, 2) / 255
        signal = Batch(signal=image * 2 - 1)
        bound = model.log_prob(signal, Draws.whole(seed, 0, len(image)))
        assert float(bound.exp().sum()) < 1
        assert bool(bound.isfinite().all())


@torch.no_grad()
def test_importance_weights_of_the_dequantisation_average_to_the_mass_of_a_value() -> None:
    """With latents that do not depend on neighbours, each value's mass is an integral that can be computed."""
    model = model_of(side=2, scales=[[0, 0]], attention="no").double()
    image, many = torch.tensor([[[[3, 200], [90, 17]]]], dtype=torch.float64) / 255, 4000
    noise = torch.randn(many, 1, 2, 2, dtype=torch.float64)
    weights = model.bound(image.expand(many, -1, -1, -1), noise)
    edges = [model.logits((image * 255 + end) / 256)[0].flatten() for end in (0.0, 1.0)]
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = (normal.cdf(edges[1]) - normal.cdf(edges[0])).log().sum()
    found = weights.logsumexp(0) - math.log(many)
    error = float((weights - found).exp().std() / many**0.5)
    assert float(found - exact) == pytest.approx(0, abs=5 * error)
    assert float(weights.mean()) < float(exact)


def test_halves_of_a_chessboard_come_together_again() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert halves(x, "checkers")[0, 0].flatten().tolist() == [0, 2, 5, 7, 8, 10, 13, 15]
    assert torch.equal(whole(halves(x, "checkers"), "checkers"), x)


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be divisible by 2 and 4"):
        model_of(side=6)
    with pytest.raises(ConfigError, match="1 channels have no halves"):
        model_of(scales=[[1, 1]])

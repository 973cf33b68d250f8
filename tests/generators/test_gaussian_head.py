"""The Gaussian head: its loss is the density, its draws have the mean and deviation that it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.parts.heads.gaussian import GaussianHead, GaussianSampler
from tokenloom.models.parts.heads.hidden import Hidden
from tokenloom.models.sampling.sampler import Moment, Sampler

LAYOUT = TokenLayout(grids=((1, 4),), channels=3, axis="time")


def head() -> GaussianHead:
    made: Any = GaussianHead.Config().build(LAYOUT, 8, None)  # type: ignore[arg-type]
    with torch.no_grad():
        made.out.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return made


def test_the_loss_is_the_negative_log_density() -> None:
    made, h, x = head(), torch.randn(2, 4, 8), torch.randn(2, 4, 3)
    mean, deviation = made.split(made.out(h))
    torch.testing.assert_close(made.loss(h, x), -Normal(mean, deviation).log_prob(x).sum(-1))


def drawn(temperature: float, weight: float = 0.0) -> torch.Tensor:
    h = torch.linspace(-1, 1, 8).expand(4000, 1, 8)
    sampler = Sampler(head=GaussianSampler(temperature=temperature))
    hidden = Hidden(h, None if not weight else 2 * h, weight)
    return head().draw(hidden, sampler, Moment(0, 1, 0, 1, 4), SampleDraws.of(0, 0, 4000, torch.device("cpu"))).data[:, 0]


def test_draws_have_the_moments_that_it_says() -> None:
    made, h = head(), torch.linspace(-1, 1, 8).view(1, 1, 8)
    mean, deviation = (part[0, 0].detach() for part in made.split(made.out(h)))
    whole, half = drawn(1.0), drawn(0.5)
    torch.testing.assert_close(whole.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(whole.std(0), deviation, rtol=0.05, atol=0)
    torch.testing.assert_close(half.std(0), whole.std(0) / 2)
    torch.testing.assert_close(drawn(0.0), mean.expand(4000, -1))


def test_guidance_moves_means_alone() -> None:
    made, h = head(), torch.linspace(-1, 1, 8).view(1, 1, 8)
    mean, _ = made.split(made.out(h))
    away, _ = made.split(made.out(2 * h))
    torch.testing.assert_close(drawn(0.0, 1.5)[0], (2.5 * mean - 1.5 * away)[0, 0].detach())
    torch.testing.assert_close(drawn(1.0, 1.5).std(0), drawn(1.0).std(0), rtol=1e-4, atol=0)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(LayoutError, match="continuous tokens"):
        GaussianHead.Config().build(TokenLayout(grids=((1, 4),), vocabulary=5), 8, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature"):
        GaussianSampler(temperature=-1.0)

"""Laws of blockwise diffusion: what a block sees, decoding by caches, both ends of the block size; and of the solvers."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.layout import TokenLayout
from tokenloom.models.parts.diffusion import TIMES, GaussianDiffusion
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.sampling.solvers import Solver, solve
from tokenloom.models.zoo.generators.acdit.module import ACDiT, in_blocks

LAYOUT = TokenLayout(grids=((4, 4),), channels=3)


def model_of(blocks: int, shape: str = "squares", layout: TokenLayout = LAYOUT) -> ACDiT:
    torch.manual_seed(0)
    args = {"depth": 2, "width": 32, "heads": 2, "blocks": blocks, "shape": shape}
    model = cast(ACDiT, registry.get("acdit").config(args).build(layout, 3))  # type: ignore[attr-defined]
    for part in model.parameters():
        torch.nn.init.normal_(part, std=0.2)
    return model.eval()


def inputs_of(model: ACDiT) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    clean, noisy = torch.randn(2, 2, model.layout.length, 3)
    return clean, noisy, torch.randint(TIMES, (2, model.config.blocks)), torch.randn(2, 32)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 4, 16])
def test_decoding_by_caches_equals_the_training_form(blocks: int) -> None:
    model = model_of(blocks)
    clean, noisy, t, vector = inputs_of(model)
    taught = model.net(clean, noisy, t, vector)
    cache, size = model.net.cache(2), model.net.size
    for block, (seen, x, wanted) in enumerate(zip(*(v.split(size, 1) for v in (clean, noisy, taught)))):
        got = model.net.denoise(x, t[:, block], vector, block, cache)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(model.net.denoise(x, t[:, block], vector, block, cache), got, atol=0, rtol=0)
        model.net.read(seen, block, cache)


@pytest.mark.parametrize("blocks", [1, 4, 16])
def test_a_block_depends_on_earlier_clean_blocks_and_on_its_own_noise_alone(blocks: int) -> None:
    """One block: diffusion of the whole, which no clean token enters.  Blocks of one token: autoregression."""
    model = model_of(blocks)
    clean, noisy, t, vector = inputs_of(model)
    clean.requires_grad_()
    noisy.requires_grad_()
    out = model.net(clean, noisy, t, vector)
    for block, part in enumerate(out.split(model.net.size, 1)):
        grads = torch.autograd.grad(part.sum(), (clean, noisy), retain_graph=True)
        seen = [g.abs().sum((0, 2)).view(blocks, -1).sum(1) > 0 for g in grads]
        assert seen[0].tolist() == [other < block for other in range(blocks)]
        assert seen[1].tolist() == [other == block for other in range(blocks)]


def test_squares_tile_the_grid_and_runs_follow_it() -> None:
    assert in_blocks(LAYOUT, 4, "squares").view(4, 4).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert in_blocks(LAYOUT, 2, "runs").tolist() == list(range(16))
    film = TokenLayout(grids=((2, 2),), channels=3, frames=3)
    with pytest.raises(ConfigError, match="blocks=3: 4 tokens each are no squares"):
        in_blocks(film, 3, "squares")
    assert model_of(3, "runs", film).net.rotations.shape == (12, 8, 4)


def test_impossible_blocks_and_samplers_are_refused() -> None:
    with pytest.raises(ConfigError, match="blocks=3: must divide the 16 tokens"):
        model_of(3)
    with pytest.raises(ConfigError, match="blocks=2: 8 tokens each are no squares"):
        model_of(2)
    with pytest.raises(ConfigError, match=r"sample\.head\.steps=0"):
        Sampler().edited(head={"solver": {"steps": 0}})
    with pytest.raises(ConfigError, match="ACDiT takes 'solver' alone"):
        model_of(4).check_sampler(Sampler().edited(head={"diffusion": {"steps": 3}}))


def solved(solver: Solver, steps: int) -> float:
    """Error of the solver where the data is normal, so that the noise that a net would predict and the end of the way are known."""
    process, mean, std = GaussianDiffusion("linear", "eps"), 0.7, 0.4
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def noise(x: Tensor, t: int) -> Tensor:
        signal = process.signal(t)
        return (1 - signal).sqrt() * (x - signal.sqrt() * mean) / (signal * std**2 + 1 - signal)

    last = process.signal(TIMES - 1)
    wanted = mean + (start - last.sqrt() * mean) * std / (last * std**2 + 1 - last).sqrt()
    return float((solve(process, solver, steps, start, noise) - wanted).abs().max())


@pytest.mark.parametrize("solver", ["ddim", "dpm"])
def test_solvers_come_to_the_end_of_the_way(solver: Solver) -> None:
    errors = [solved(solver, n) for n in (12, 50, 200)]
    assert errors[0] > 2.5 * errors[1] > 6.25 * errors[2] > 0
    assert errors[2] < 0.02


def test_the_second_order_is_nearer_at_as_many_steps() -> None:
    assert all(solved("dpm", n) < 0.6 * solved("ddim", n) for n in (25, 50, 100))
    assert math.isfinite(solved("dpm", 1))

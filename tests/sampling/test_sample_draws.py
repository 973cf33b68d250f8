"""Random numbers of samples: functions of (seed, stream, step, place), uniform, normal and independent along each of them.

All numbers are fixed by their seeds; the bounds are those of the test statistics at about one in a million.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tokenloom.models.core import draws
from tokenloom.models.core.draws import Draws, SampleDraws

SHAPES = [(), (1,), (3,), (7, 5), (130,)]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_alone_draws_what_it_draws_in_a_batch_of_64(kind: str, shape: tuple[int, ...]) -> None:
    batch = SampleDraws.of(7, 0, 64)
    numbers = getattr(batch, kind)("head", 3, *shape)
    assert numbers.shape == (64, *shape)
    assert numbers.dtype == torch.float32
    for row in (0, 1, 37, 63):
        alone = getattr(SampleDraws.of(7, row, row + 1), kind)("head", 3, *shape)
        assert torch.equal(alone[0], numbers[row])
    assert torch.equal(batch.permutation("order", 0, 9)[5], SampleDraws.of(7, 5, 6).permutation("order", 0, 9)[0])


def test_batches_are_cut_chosen_and_repeated() -> None:
    draws = SampleDraws.of(1, 0, 6)
    whole = draws.uniform("x", 0, 4)
    assert torch.equal(draws.part(2, 5).uniform("x", 0, 4), whole[2:5])
    assert torch.equal(draws.select(torch.tensor([4, 0])).uniform("x", 0, 4), whole[[4, 0]])
    assert torch.equal(draws.select(torch.arange(6) > 3).uniform("x", 0, 4), whole[4:])
    assert torch.equal(draws.repeat(2).uniform("x", 0, 4), torch.cat([whole, whole]))
    steps = torch.tensor([0, 1, 2, 3, 4, 5])
    assert torch.equal(draws.uniform("x", steps, 4)[3], draws.uniform("x", 3, 4)[3]), "each row may stand at a step of its own"
    assert torch.equal(draws.uniform("x", torch.tensor(3), 4), draws.uniform("x", 3, 4))
    assert torch.equal(SampleDraws.each([1, 9]).seed_B, torch.cat([SampleDraws.of(s, 0, 1).seed_B for s in (1, 9)]))


def test_the_same_question_has_one_answer_and_another_one_another() -> None:
    draws = SampleDraws.of(1, 0, 8)
    first = draws.uniform("x", 0, 20)
    assert torch.equal(first, draws.uniform("x", 0, 20))
    others = [
        draws.uniform("y", 0, 20),
        draws.uniform("x", 1, 20),
        draws.fork("z").uniform("x", 0, 20),
        SampleDraws.of(2, 0, 8).uniform("x", 0, 20),
    ]
    for other in others:
        assert not bool((other == first).any())


@pytest.mark.parametrize("seed_B", [torch.zeros(3), torch.zeros((3, 1), dtype=torch.int64), torch.zeros(3, dtype=torch.int32)])
def test_seeds_are_one_int64_a_sample(seed_B: Tensor) -> None:
    with pytest.raises(ValueError, match="one int64 a sample"):
        SampleDraws(seed_B)


def grid(first: int = 0, stream: str = "head") -> Tensor:
    """(seeds 32, steps 32, places 128): a uniform number each; seeds are successive numbers, as a careless caller gives them."""
    draws = SampleDraws(first + torch.arange(32))
    return torch.stack([draws.uniform(stream, step, 128) for step in range(32)], dim=1)


@pytest.mark.parametrize("numbers", [grid, lambda: Draws.whole(0, 0, 1024).uniform(128)], ids=["samples", "training"])
def test_uniform_numbers_fill_the_interval_evenly(numbers) -> None:
    u = numbers().flatten().double()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    count, cells = u.numel(), 256
    chi2 = float(((torch.histc(u, cells, 0, 1) - count / cells) ** 2).sum() * cells / count)
    assert abs(chi2 - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1))
    ordered = u.sort().values
    distance = float((ordered - torch.arange(count) / count).abs().max())
    assert distance * math.sqrt(count) < 2.7, "Kolmogorov-Smirnov"
    low = (u * 2**24).long() & 0xFF  # the lowest bits are as good as the highest
    chi2 = float(((torch.bincount(low, minlength=256) - count / 256) ** 2).sum() * 256 / count)
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


def test_seeds_steps_and_places_are_independent() -> None:
    u = grid().double() - 0.5
    pairs = {
        "seeds": (u[1:], u[:-1]),
        "steps": (u[:, 1:], u[:, :-1]),
        "places": (u[..., 1:], u[..., :-1]),
        "seed and step": (u[1:, :-1], u[:-1, 1:]),
        "step and place": (u[:, 1:, :-1], u[:, :-1, 1:]),
        "seeds that differ in one high bit": (
            u,
            torch.stack([SampleDraws(torch.arange(32) + (1 << 40)).uniform("head", s, 128) for s in range(32)], 1) - 0.5,
        ),
        "streams": (u, grid(stream="order").double() - 0.5),
    }
    for name, (a, b) in pairs.items():
        assert abs(float((a * b).mean())) * 12 * math.sqrt(a.numel()) < 5, name
        # Pairs fill the square evenly too.
        cell = ((a + 0.5) * 16).long() * 16 + ((b + 0.5) * 16).long()
        chi2 = float(((torch.bincount(cell.flatten(), minlength=256) - a.numel() / 256) ** 2).sum() * 256 / a.numel())
        assert abs(chi2 - 255) < 5.5 * math.sqrt(2 * 255), name


@pytest.mark.parametrize("numbers", [lambda: SampleDraws.of(0, 0, 256).normal("z", 0, 512), lambda: Draws.whole(0, 0, 256).normal(512)])
def test_normal_numbers_are_normal(numbers) -> None:
    z = numbers().flatten().double()
    count = z.numel()
    assert bool(z.isfinite().all())
    assert float(z.abs().max()) < 5.4
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(spread / count), power
    ordered = (0.5 * (1 + torch.erf(z / math.sqrt(2)))).sort().values
    assert float((ordered - torch.arange(count) / count).abs().max()) * math.sqrt(count) < 2.7, "Kolmogorov-Smirnov"


def test_the_ends_of_the_normal_are_finite() -> None:
    ends = torch.tensor([0, -1, (1 << 31) - 1], dtype=torch.int32)
    assert bool(draws._normal(ends).isfinite().all())
    assert float(draws._uniform(torch.tensor([-1], dtype=torch.int32))) < 1
    assert float(draws._uniform(torch.tensor([0], dtype=torch.int32))) == 0


def test_neighbouring_keys_are_no_shifts_of_each_other() -> None:
    """Keys with near lower halves share no words, of which 6400 random ones meet once in 200 such tests."""
    high = torch.arange(64, dtype=torch.int32)
    low = high // 8
    words = draws._blocks(low, high, (100,))
    assert words.unique().numel() == words.numel()


def test_permutations_are_even() -> None:
    order = SampleDraws.of(0, 0, 6000).permutation("order", 0, 4)
    code = (order * torch.tensor([64, 16, 4, 1])).sum(1)
    count = torch.bincount(code, minlength=256)
    assert int((count > 0).sum()) == 24
    assert float(((count[count > 0] - 250.0) ** 2).sum() / 250) < 23 + 5 * math.sqrt(46)


def test_numbers_are_made_without_waiting_for_the_device() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Ops(TorchDispatchMode):
        names: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    draws = SampleDraws.of(0, 0, 4)
    with Ops() as ops:
        draws.uniform("x", 1, 3), draws.normal("x", torch.tensor(1), 3), draws.permutation("x", 1, 5)
    assert not ops.names & {"_local_scalar_dense", "nonzero", "masked_select", "item"}


def test_numbers_made_ahead_are_those_of_each_step() -> None:
    plain = SampleDraws.of(3, 0, 5)
    sizes = (1, 4, 3, 7)
    ahead = plain.ahead("head", sizes)
    for step, size in enumerate(sizes):
        assert torch.equal(ahead.uniform("head", step, size), plain.uniform("head", step, size))
    for stream, step, count in (("head", 1, 9), ("other", 1, 4), ("head", 11, 2)):
        assert torch.equal(ahead.uniform(stream, step, count), plain.uniform(stream, step, count))
    assert torch.equal(ahead.part(1, 3).uniform("head", 2, 3), plain.uniform("head", 2, 3)[1:3])

"""Draws are functions of (seed, step, stream, row): the same for any share of the batch, and as random as they should be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from zoo import spec_of

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.dropout import drop_path, dropout

KINDS = ("bernoulli", "uniform", "normal", "permutation")


def drawn(draws: Draws, kind: str) -> Tensor:
    match kind:
        case "bernoulli":
            return draws.bernoulli(0.3, 5, 7)
        case "permutation":
            return draws.permutation(6)
    return getattr(draws, kind)(5, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_any_share_of_a_batch_has_its_rows(kind: str) -> None:
    whole = Draws.whole(3, 4, 8, stream="x")
    first, second = drawn(whole, kind), drawn(whole, kind)
    assert not torch.equal(first, second)
    for start, stop in ((0, 8), (0, 3), (3, 8), (5, 6)):
        part = Draws(3, 4, 1, start, stop, 8, stream="x")
        assert torch.equal(drawn(part, kind), first[start:stop])
        assert torch.equal(drawn(part, kind), second[start:stop])
    for other in (Draws.whole(4, 4, 8, stream="x"), Draws.whole(3, 5, 8, stream="x"), Draws.whole(3, 4, 8, stream="y"), whole.fork("z")):
        assert not torch.equal(drawn(other, kind), first)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 12])
def test_workers_and_micro_batches_draw_what_one_batch_draws(workers: int, micro: int) -> None:
    """Two calls of each kind and a fork, in the order in which a model makes them."""

    def step(start: int, stop: int) -> list[Tensor]:
        draws = Draws(5, 2, 10, start, stop, 12, stream="main")
        shared = [draws.shared_uniform(3).expand(stop - start, -1), draws.shared_permutation(7).expand(stop - start, -1)]
        return [drawn(each, kind) for each in (draws, draws.fork("part")) for kind in KINDS * 2] + shared

    bounds = [12 * i // workers for i in range(workers + 1)]
    parts = [step(at, min(at + micro, stop)) for start, stop in itertools.pairwise(bounds) for at in range(start, stop, micro)]
    for whole, split in zip(step(0, 12), zip(*parts)):
        assert torch.equal(whole, torch.cat(split))


def test_shared_numbers_are_their_own() -> None:
    shared = Draws.whole(0, 0, 64).shared_uniform(50)
    assert not bool((Draws.whole(0, 0, 64).uniform(50) == shared).all(1).any()), "no row has the numbers that all share"
    assert sorted(Draws.whole(0, 0, 1).shared_permutation(9).tolist()) == list(range(9))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_bernoulli_comes_at_its_rate_everywhere(rate: float) -> None:
    steps = torch.stack([Draws.whole(0, step, 32).bernoulli(rate, 64) for step in range(200)]).double()
    deviation = (rate * (1 - rate)) ** 0.5
    for over in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):  # all, each place, each row, each step
        mean = steps.mean(over)
        count = steps.numel() / max(1, mean.numel())
        far = (mean - rate).abs() / (deviation / count**0.5)
        assert float(far.max()) < 5.2, over
        if mean.numel() > 30:
            assert float(far.square().mean()) == pytest.approx(1, abs=5 * (2 / mean.numel()) ** 0.5), over


def test_bernoulli_of_neighbours_is_independent() -> None:
    one = [Draws.whole(seed, step, 16) for seed, step in itertools.product(range(4), range(50))]
    signs = torch.stack([torch.stack([draws.bernoulli(0.5, 40), draws.bernoulli(0.5, 40)]) for draws in one]).double() * 2 - 1
    pairs = {
        "places": signs[..., 1:] * signs[..., :-1],
        "rows": signs[..., 1:, :] * signs[..., :-1, :],
        "calls": signs[:, 1] * signs[:, 0],
        "steps": signs[1:50] * signs[:49],
        "seeds": signs[50:100] * signs[:50],
        "diagonals": signs[..., 1:, 1:] * signs[..., :-1, :-1],
    }
    for name, product in pairs.items():
        assert abs(float(product.mean())) < 4.5 / product.numel() ** 0.5, name


def test_dropout_keeps_the_mean_and_is_left_out_without_draws() -> None:
    x = torch.ones(64, 50, 20)
    for rate in (0.1, 0.6):
        kept = dropout(x, rate, Draws.whole(0, 0, 64))
        assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
        assert float(kept.mean()) == pytest.approx(1, abs=0.02)
        rows = drop_path(x, rate, Draws.whole(0, 0, 64)).flatten(1)
        assert bool((rows == rows[:, :1]).all())
        assert 0 < float((rows[:, 0] == 0).float().mean()) < 1
    assert dropout(x, 0.1, None) is x
    assert dropout(x, 0.0, Draws.whole(0, 0, 64)) is x


def test_dropout_compiles_into_one_graph_for_all_steps() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, draws: dropout(dropout(x, 0.2, draws), 0.2, draws), backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    x = torch.ones(4, 8)
    for step in range(4):
        plain = Draws.whole(0, step, 4)
        assert torch.equal(compiled(x, Draws.whole(0, step, 4)), dropout(dropout(x, 0.2, plain), 0.2, plain))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_numbers_for_the_host_are_those_that_all_share() -> None:
    device, host = Draws(5, 2, 10, 3, 9, 12, stream="main"), Draws(5, 2, 10, 0, 2, 12, stream="main")
    for shape in ((), (3,), (2, 4)):
        assert torch.equal(device.shared_uniform(*shape), host.host_uniform(*shape))
    assert torch.equal(device.shared_permutation(5), host.shared_permutation(5)), "both count as calls"


#: Methods whose training order is decided by numbers, on the host and on the device.
DECIDED = ["maskgit", "hmar", "flexvar", "mar", "rar", "randar", "srdd", "titok_imagebert", "mvar", "infinity"]


@pytest.mark.parametrize("name", DECIDED)
def test_the_order_of_a_training_step_waits_for_no_device(name: str) -> None:
    """Numbers on the meta device have no values: an order that asked for one would fail."""
    spec = spec_of(name)
    order, layout = getattr(spec.config(), "order", None), TokenLayout.from_dict(spec.given["layout"])
    if order is None:
        pytest.skip("has no order of groups")
    plan = order.plan(layout, Draws.whole(0, 3, 4, steps=8, device="meta"))
    assert sum(plan.sizes) <= layout.length

"""Many requests in one pass: each is what it is alone, whoever comes and goes, and passes are shared."""

from __future__ import annotations

import pytest
import torch
from zoo import build

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.decoders.jacobi import Jacobi
from tokenloom.models.sampling.engine import Engine, Sequence, refusal
from tokenloom.models.sampling.fixed import NEVER
from tokenloom.models.sampling.pool import RowPool
from tokenloom.models.sampling.sampler import Constant, Linear, Sampler

#: (rows, seed, sampler, pass before which it arrives): one, several, guided or not.
REQUESTS = [
    (1, 5, Sampler(), 0),
    (2, 6, Sampler(guidance=Constant(value=1.5), top_k=6), 0),
    (1, 7, Sampler(temperature=Constant(value=0.7), top_p=0.9), 1),
    (2, 8, Sampler(guidance=Linear(value=2.0)), 2),
]


def model_of(name: str) -> GroupGenerator | None:
    """In double precision, so that the size of a batch does not decide which token is drawn; None for one that shares no passes."""
    model = build(name)
    with torch.no_grad():  # a fresh model hardly looks at what came before
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    sharing = isinstance(model, GroupGenerator) and refusal(model, Sampler()) is None
    return model.double().eval() if sharing else None  # type: ignore[return-value]


def labels(rows: int, seed: int) -> Conditions:
    return Conditions.of(Labels((torch.arange(rows) + seed) % 3))


def served(engine: Engine, gone: int | None = None) -> list[Sequence]:
    """All requests, each arriving at its pass or as soon as there is room; one leaves in the middle."""
    waiting = [(engine.open(labels(rows, seed), sampler, SampleDraws.of(seed, 0, rows)), at) for rows, seed, sampler, at in REQUESTS]
    sequences, now = [s for s, _ in waiting], 0
    while waiting or engine.running:
        for one, at in list(waiting):
            if at <= now and engine.admit(one):
                waiting.remove((one, at))
        if gone is not None and now == 1 and sequences[gone] in engine.running:
            engine.evict(sequences[gone])
        engine.step()
        now += 1
    return sequences


def check(name: str) -> None:
    model = model_of(name)
    if model is None:
        pytest.skip("does not share passes")
    engine = Engine(model, rows=7)
    together = served(engine, gone=0)
    for (rows, seed, sampler, _), sequence in zip(REQUESTS[1:], together[1:]):
        alone = model.generate(labels(rows, seed), sampler, SampleDraws.of(seed, 0, rows))
        torch.testing.assert_close(sequence.tokens().data, alone.data, rtol=1e-6, atol=1e-6)
    assert not together[0].done
    assert not engine.running
    assert engine.free == engine.rows
    assert engine.passes <= sum(sequence.passes for sequence in together)


@pytest.mark.parametrize("name", ["raster", "var", "rar", "maskgit", "mar"])
def test_a_request_is_what_it_is_alone(name: str) -> None:
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", registry.names("generator"))
def test_so_is_that_of_any_generator(name: str) -> None:
    check(name)


@pytest.mark.parametrize("steps", [(16, 4, 16), (4, 16, 8)])
def test_requests_of_other_steps_stand_between(steps: tuple[int, int, int]) -> None:
    """Rows that are alike need not stand side by side, and what was in a row before is seen by nobody."""
    model = model_of("randar")
    assert model is not None
    engine, asked = Engine(model, rows=3), [(seed, Sampler().edited(steps=count)) for seed, count in enumerate(steps)]
    for _ in range(2):  # the second time in rows that others have left
        sequences = [engine.open(labels(1, seed), sampler, SampleDraws.of(seed, 0, 1)) for seed, sampler in asked]
        assert all(engine.admit(sequence) for sequence in sequences)
        while engine.running:
            engine.step()
        for (seed, sampler), sequence in zip(asked, sequences):
            alone = model.generate(labels(1, seed), sampler, SampleDraws.of(seed, 0, 1))
            torch.testing.assert_close(sequence.tokens().data, alone.data)
        asked.reverse()


def test_rows_are_empty_when_they_are_taken() -> None:
    model = model_of("raster")
    assert model is not None
    pool = RowPool(model.net, 3, 5, torch.zeros((), dtype=torch.float64))
    assert list(pool.take(2)) == [0, 1]
    pool.table.rank_BT.copy_(torch.arange(15).view(3, 5))
    pool.give_back(range(0, 1))
    assert pool.table.rank_BT[0].tolist() == [5, 6, 7, 8, 9]
    assert list(pool.take(2)) == [1, 2]
    assert (pool.table.rank_BT[1:] == NEVER).all()
    assert (pool.table.segment_BT[1:] == -1).all()


def test_passes_are_shared_at_any_steps() -> None:
    """Eight requests that come one pass after another take seven passes more than one."""
    model = model_of("raster")
    assert model is not None
    engine, steps = Engine(model, rows=8), model.layout.length
    for arriving in range(8):
        assert engine.admit(engine.open(labels(1, arriving), Sampler(), SampleDraws.of(arriving, 0, 1)))
        engine.step()
    while engine.running:
        engine.step()
    assert engine.passes == steps + 7


def test_what_cannot_share_is_refused() -> None:
    model = model_of("raster")
    assert model is not None
    with pytest.raises(ConfigError, match="rows=1: at least 2"):
        Engine(model, rows=1)
    engine = Engine(model, rows=4)
    with pytest.raises(ConfigError, match="3 samples need 6 rows of the net, and there are 4"):
        engine.open(labels(3, 0), Sampler(guidance=Constant(value=1.0)), SampleDraws.of(0, 0, 3))
    with pytest.raises(ConfigError, match="jacobi"):
        engine.open(labels(1, 0), Sampler(decoder=Jacobi()), SampleDraws.of(0, 0, 1))
    recurrent = build("aim")
    with pytest.raises(ConfigError, match="no rows of single slots"):
        Engine(recurrent)  # type: ignore[arg-type]
    first = engine.open(labels(4, 0), Sampler(), SampleDraws.of(0, 0, 4))
    assert engine.admit(first)
    assert not engine.admit(engine.open(labels(1, 0), Sampler(), SampleDraws.of(0, 0, 1)))

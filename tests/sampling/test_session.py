"""What a step of decoding leaves alone: the host, the shapes, and what was decided before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from small_generators import grid, small
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from zoo import build

from tokenloom.models.core import registry
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.diffusion import signals
from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.decoders.groups import GroupWise
from tokenloom.models.sampling.decoders.jacobi import Jacobi
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.sampling.session import DecodingSession

ROWS = 3
LABELS = Labels(torch.arange(ROWS) % 3)
#: Operators whose result's shape, or whose end, the host has to wait for.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique", "item", "is_nonzero", "equal")
#: Calls from Python that read a tensor's numbers without an operator.
READS = {Tensor.tolist, Tensor.numpy, Tensor.item, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}


class Waiting(TorchDispatchMode):
    """Counts operators that a host would wait for, and records the shapes that all operators are given."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.shapes: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        leaves = tree_flatten((args, kwargs or {}))[0]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        by_mask = name in ("index", "index_put", "index_put_") and any(t.dtype == torch.bool for t in tensors[1:])
        open_end = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None and len(tensors) > len(args) - 1
        if name.startswith(WAITS) or by_mask or open_end or name == "lift_fresh":
            self.waits[name] += 1
        self.shapes.append((name, [tuple(t.shape) for t in tensors]))
        return func(*args, **(kwargs or {}))


class Reading(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.reads[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[tuple[Waiting, Reading]]:
    with Reading() as reading, Waiting() as waiting:
        yield waiting, reading


def found(step: Callable[[], Any]) -> tuple[dict[str, int], list[Any]]:
    """What a step waits for, and the shapes of all its operators."""
    with watched() as (waiting, reading):
        step()
    return dict(waiting.waits + reading.reads), waiting.shapes


def model_of(name: str) -> GroupGenerator:
    """The tiny model of a recipe, with weights away from their start, in eval mode."""
    model = build(name)
    if not isinstance(model, GroupGenerator):
        pytest.skip("holds its own module")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


def session_of(model: GroupGenerator, **given: Any) -> DecodingSession:
    sampler = cast(Sampler, model.sampler).edited(guidance=0.5, top_k=3, top_p=0.9)
    return DecodingSession(model, LABELS, sampler, SampleDraws.of(0, 0, ROWS), **given)


GENERATORS = registry.names("generator")

for schedule in ("cosine", "linear"):  # made once a process, by whichever step is the first
    signals(schedule, torch.device("cpu"))


def test_waiting_is_noticed() -> None:
    x, wait = torch.arange(4.0), {}
    for step in (
        lambda: bool(x[0] > 0),
        lambda: x.tolist(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: x.sum().item(),
    ):
        wait = found(step)[0]
        assert wait
    assert not found(lambda: x.topk(2).values + x.sort().values[:2])[0]


@pytest.mark.parametrize("name", GENERATORS)
def test_a_step_waits_for_nothing(name: str) -> None:
    session = session_of(model_of(name))
    for group in range(session.plan.groups):
        assert found(lambda g=group: session.commit(session.verify(session.propose(g))))[0] == {}, group  # type: ignore[misc]


@pytest.mark.parametrize("name", ["raster", "aim", "rar"])
def test_a_speculative_step_waits_for_nothing_and_keeps_its_shapes(name: str) -> None:
    model = cast(GroupGenerator, small(name, grid(4), scale=0.3))
    sampler, decoder = Sampler(guidance=Constant(value=0.5), top_k=5, top_p=0.9), Jacobi(window=3)
    session = ChainSession(model, LABELS, sampler, SampleDraws.of(0, 0, ROWS), window=3)
    session.begin()
    draft, shapes = decoder.blind(session), []
    for index in range(4):

        def step(index: int = index) -> None:
            nonlocal draft
            draft = decoder.step(session, draft, index)

        waits, seen = found(step)
        assert waits == {}
        shapes.append(seen)
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]


@pytest.mark.parametrize("name", ["raster", "maskgit", "npp", "par", "randar", "rar", "var", "sigma_gpt"])
def test_shapes_of_a_step_depend_on_its_group_alone(name: str) -> None:
    session = session_of(model_of(name), shapes="fixed")
    seen: dict[tuple[int, ...], Any] = {}
    for group in range(session.plan.groups):
        sizes = tuple(session.plan.sizes[max(0, group - 1) : group + 1])  # what is given, and what is predicted
        shapes = found(lambda g=group: session.commit(session.verify(session.propose(g))))[1]  # type: ignore[misc]
        if group:
            assert seen.setdefault(sizes, shapes) == shapes, group


@pytest.mark.parametrize("name", ["raster", "npp", "par", "randar", "rar", "var", "sigma_gpt", "nar", "infinity", "hmar"])
def test_fixed_shapes_change_nothing(name: str) -> None:
    model = model_of(name)
    growing, fixed = (list(GroupWise().steps(session_of(model, shapes=shapes))) for shapes in ("growing", "fixed"))
    for a, b in zip(growing, fixed, strict=True):
        torch.testing.assert_close(a.h_BnD, b.h_BnD, atol=2e-5, rtol=1e-5)
        assert torch.equal(a.data, b.data)


def test_growing_shapes_are_told_apart() -> None:
    session = session_of(model_of("raster"))
    shapes = [found(lambda g=group: session.commit(session.verify(session.propose(g))))[1] for group in range(3)]  # type: ignore[misc]
    assert shapes[1] != shapes[2]


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shapes", ["growing", "fixed"])
def test_what_is_rolled_back_leaves_no_trace(name: str, shapes: Any) -> None:
    model = model_of(name)
    plain = list(GroupWise().steps(session_of(model, shapes=shapes)))
    session = session_of(model, shapes=shapes)
    for group, expected in enumerate(plain):
        mark = session.mark()
        for ahead in range(group, min(group + 2, session.plan.groups)):  # other tokens, and what follows from them
            proposal = session.verify(session.propose(ahead))
            other = proposal.data + 1
            session.commit(replace(proposal, data=other if model.layout.channels else other % model.layout.vocabulary))
        session.rollback(mark)
        step = session.commit(session.verify(session.propose(group)))
        assert torch.equal(step.h_BnD, expected.h_BnD)
        assert torch.equal(step.data, expected.data)
    assert session.trace.calls["net"] > len(plain)

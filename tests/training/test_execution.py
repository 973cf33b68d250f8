"""How a method is computed changes no method: compiled and in double precision, every recipe trains and gives images or tokens."""

from __future__ import annotations

import math

import pytest
import torch
from zoo import CLASSES, NAMES, ROWS, batch_of, build

from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Density, Generator, Labels, Method, Tokenizer, Tokens

#: Tried in each run of the tests; the others take minutes together.
OFTEN = {"vq", "fsq", "lfq", "kl", "raster", "var", "maskgit"}
#: Compiled in each run of the tests: a tokenizer and a generator (the compiler takes seconds for each).
COMPILED = {"vq", "raster"}
#: ``jpeg`` has nothing to train, so neither setting reaches it.
SOME, SOME_COMPILED = (
    [pytest.param(name, marks=() if name in often else pytest.mark.long) for name in NAMES if name != "jpeg"] for often in (OFTEN, COMPILED)
)


def test_what_is_left_out_has_nothing_to_train() -> None:
    assert not list(build("jpeg").parameters())


def in_double(batch: Batch) -> Batch:
    image = None if batch.signal is None else batch.signal.double()
    tokens = batch.tokens
    if tokens is not None and tokens.data.is_floating_point():
        tokens = Tokens(tokens.data.double(), tokens.layout)
    return Batch(signal=image, tokens=tokens, conditions=batch.conditions)


def losses(model: Method, batch: Batch, compiled: bool) -> dict[str, float]:
    model.train()
    verb = torch.compile(model.losses, backend="eager") if compiled else model.losses
    found = {}
    for phase in model.phases:
        parts = verb(batch, phase, Draws.whole(0, 0, ROWS, 9, stream=phase))
        if parts["loss"].requires_grad:
            parts["loss"].backward()
        found |= {f"{phase}/{name}": float(value) for name, value in parts.items() if value.numel() == 1}
    return found


@pytest.mark.parametrize("name", SOME_COMPILED)
def test_compiled_losses_are_those_of_eager_mode(name: str) -> None:
    torch._dynamo.reset()
    plain, compiled = build(name), build(name)
    assert losses(compiled, batch_of(compiled), True) == pytest.approx(losses(plain, batch_of(plain), False), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_double_precision_trains_and_decodes(name: str) -> None:
    model = build(name).double()
    batch = in_double(batch_of(model))
    assert all(math.isfinite(value) for value in losses(model, batch, False).values())
    model.eval()
    if isinstance(model, Tokenizer):
        assert batch.signal is not None
        image_BCHW = model.decode(model.encode(batch.signal))
        assert image_BCHW.dtype == torch.float64
        assert model.preview(batch, Draws.whole(0, 0, ROWS, 1)).isfinite().all()
    elif isinstance(model, Density):
        assert model.log_prob(batch, Draws.whole(0, 0, ROWS)).dtype == torch.float64
        assert model.sample(None, SampleDraws.of(0, 0, 4)).isfinite().all()
    else:
        assert isinstance(model, Generator)
        tokens = model.generate(Labels(torch.arange(4) % CLASSES), model.sampler, SampleDraws.of(0, 0, 4))
        assert tokens.data.shape[:2] == (4, model.layout.length)

"""Tiny models of the registry for the contract tests, and one short training of each that many tests share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Density, Generator, Labels, Method, Tokenizer, Tokens
from tokenloom.models.parts.nets.classifier import Classifier, Protocol, shape_of

SIZE, CHANNELS, CLASSES, ROWS = 16, 1, 3, 8
#: Rows and columns for densities that take long over each pixel, and values of a series: enough to hold the contract.
PIXELS, VALUES = {"fractalgen": 8, "glow": 8}, 16
NAMES = registry.names()
#: Steps of the shared training at most (of a method in stages: exactly), and after how many the model is kept that most contracts use.
STEPS, STAGED, EARLY = 150, 100, 3


def signal_of(name: str) -> signals.SignalSpec:
    """What the tiny tokenizer or density of a recipe is made for."""
    if name.startswith("series_"):
        return signals.SignalSpec(kind="series", shape=(VALUES,), channels=CHANNELS)
    return signals.image(PIXELS.get(name, SIZE), CHANNELS)


def tokenizer_spec(name: str) -> ModelSpec:
    """The tiny tokenizer of a recipe, given what it depends on: the base that its row of the table names, the data's classifier."""
    recipe = registry.get(name)
    given: dict[str, Any] = {"signal": signal_of(name).to_dict()}
    needs = recipe.config(recipe.tiny).needs
    if "tokenizer" in needs:
        given["tokenizer"] = tokenizer_spec(recipe.codec).to_dict()
    if "features" in needs:
        given["features"] = shape_of(CHANNELS, CLASSES, Protocol(width=4, features=8))
    return ModelSpec("tokenizer", name, dict(recipe.tiny), {}, given)


def spec_of(name: str) -> ModelSpec:
    """The tiny model of a recipe; a generator is paired with the tokenizer that its recipe names."""
    recipe = registry.get(name)
    if recipe.kind == "tokenizer":
        return tokenizer_spec(name)
    if recipe.kind == "density":
        return ModelSpec("density", name, dict(recipe.tiny), {}, {"signal": signal_of(name).to_dict()})
    codec = tokenizer_spec(recipe.codec)
    tokenizer = codec.build()
    assert isinstance(tokenizer, Tokenizer)
    given = {"layout": tokenizer.layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
    return ModelSpec("generator", name, dict(recipe.tiny), {}, given)


def build(name: str, seed: int = 0, base_steps: int = 0) -> Method:
    """The tiny model, with what it depends on: fresh, or a base tokenizer trained for some steps."""
    torch.manual_seed(seed)
    spec = spec_of(name)
    model = spec.build()
    stands: dict[str, Any] = {}
    if isinstance(model, Tokenizer) and spec.given.get("tokenizer"):
        stands["tokenizer"] = deepcopy(_base(registry.get(name).codec, seed, base_steps))
    if isinstance(model, Tokenizer) and spec.given.get("features"):
        stands["features"] = Classifier.of(spec.given["features"])
    if stands:
        torch.manual_seed(seed)  # whether or not the base was there already
        model.adopt(**stands)
    return model


@functools.cache
def _base(name: str, seed: int, steps: int) -> Method:
    """A base tokenizer after some steps of training, finished."""
    torch.manual_seed(seed)
    base = tokenizer_spec(name).build()
    for _ in optimize(base, batch_of(base), steps):
        pass
    base.finish(iter([batch_of(base)]))
    return base


def batch_of(model: Method, rows: int = ROWS, seed: int = 0, copies: int = 1) -> Batch:
    """Random tokens for a generator (ids, or latents of unit variance), smooth random signals for a tokenizer or a density, with
    labels; each row so many times."""
    draw = torch.Generator().manual_seed(seed)
    rows //= copies
    label = Labels((torch.arange(rows) % CLASSES).repeat(copies))
    if isinstance(model, Generator) and not model.layout.discrete:
        latents = torch.randn(rows, model.layout.length, model.layout.channels, generator=draw)
        return Batch(tokens=Tokens(torch.cat([latents] * copies), model.layout), conditions=label)
    if isinstance(model, Generator):
        shape = (rows, model.layout.length) + ((model.layout.codebooks,) if model.layout.codebooks > 1 else ())
        ids = torch.randint(model.layout.vocabulary, shape, generator=draw)
        return Batch(tokens=Tokens(torch.cat([ids] * copies), model.layout), conditions=label)
    if isinstance(model, Tokenizer) and model.layout.axis == "time":
        coarse = torch.cat([torch.rand(rows, CHANNELS, 4, generator=draw) * 2 - 1] * copies)
        return Batch(signal=torch.nn.functional.interpolate(coarse, VALUES, mode="linear"), conditions=label)
    coarse = torch.cat([torch.rand(rows, CHANNELS, 4, 4, generator=draw) * 2 - 1] * copies)
    image_BCHW = torch.nn.functional.interpolate(coarse, model.shape[-1] if isinstance(model, Density) else SIZE, mode="bilinear")
    if isinstance(model, Density):  # as data is: 256 values
        image_BCHW = ((image_BCHW + 1) * 127.5).round() / 127.5 - 1
    return Batch(signal=image_BCHW, conditions=label)


def batch_to_learn(model: Method) -> Batch:
    """Four rows, two of them of one class, each twice: what can be learned in some tens of steps, with half the noise of the draws."""
    return batch_of(model, copies=2)


def optimize(model: Method, batch: Batch, steps: int, lr: float = 5e-3) -> Iterator[dict[str, float]]:
    """A bare training loop over all phases, with warmup and clipping, which any method wants; the metrics of each step."""
    model.train()
    learned = {phase: [p for _, p in model.phase_parameters(phase)] for phase in model.phases}  # nothing, for a codec that is not learned
    adamw = functools.partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.99), weight_decay=0, fused=True)
    optimizers = {phase: adamw(p or [{"params": []}]) for phase, p in learned.items()}
    for step in range(steps):
        parts = {}
        for phase, optimizer in optimizers.items():
            draws = Draws.whole(0, step, batch.rows, steps, stream=phase)
            found = model.losses(batch, phase, draws)
            optimizer.zero_grad()
            if learned[phase]:
                found["loss"].backward()
                torch.nn.utils.clip_grad_norm_(learned[phase], 1.0, foreach=True)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 10)
            optimizer.step()
            parts |= {f"{phase}/{k}": float(v.detach()) for k, v in found.items() if v.numel() == 1}
        model.after_step(Draws.whole(0, step, batch.rows, steps, stream="after"))
        yield parts


@torch.no_grad()
def image_error(model: Method, batch: Batch) -> float:
    """Squared error of a tokenizer's images after encoding and decoding; 0 for a generator."""
    if not isinstance(model, Tokenizer):
        return 0.0
    assert batch.signal is not None
    training = model.training
    model.eval()
    error = float((model.decode(model.encode(batch.signal)) - batch.signal).square().mean())
    model.train(training)
    return error


@dataclass(frozen=True)
class Trained:
    """What the shared training of a method left.

    Attributes:
        history: metrics by step.
        steps: how many there would have been at most.
        early: the model after the first steps.
        before, after: the number that must fall, at first and at the end: the loss of the first phase (of a tokenizer its
            reconstruction), at the end as the mean of ten steps, since one step's loss is a draw where a step draws what it
            masks; or, where the first phase has no pixels, the squared error of the images.
        learns: whether the method has parameters at all.
    """

    history: list[dict[str, float]]
    steps: int
    early: Method
    before: float
    after: float
    learns: bool


@functools.cache
def trained(name: str) -> Trained:
    """The one training on one batch of a method in this process: it ends as soon as the loss has halved and all stages were there."""
    model = build(name, base_steps=30)
    batch = batch_to_learn(model)
    key = f"{model.phases[0]}/{'reconstruction' if isinstance(model, Tokenizer) else 'loss'}"
    learns = any(model.phase_parameters(phase) for phase in model.phases)
    staged = model.frozen_parameters(0.0) != model.frozen_parameters(1.0)
    untrained, early, history, steps = image_error(model, batch), model, [], (STAGED if staged else STEPS) if learns else EARLY
    for step, row in enumerate(optimize(model, batch, steps), start=1):
        history.append(row)
        if step == EARLY:
            early = deepcopy(model)
        if key in row and not staged and step >= EARLY + 10 and _last(history, key) < 0.5 * history[0][key]:
            break
    if key not in history[0]:
        return Trained(history, steps, early, untrained, image_error(model, batch), learns)
    return Trained(history, steps, early, history[0][key], _last(history, key), learns)


def _last(history: list[dict[str, float]], key: str) -> float:
    """Mean over the last ten steps."""
    return sum(row[key] for row in history[-10:]) / 10


def early(name: str) -> Method:
    """A copy of the method's model after the first steps of its training: away from the zeros of the start, and the test's to change."""
    return deepcopy(trained(name).early)

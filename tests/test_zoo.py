"""Contract tests over the registry: whatever is registered is under all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models import registry
from models.build import ModelSpec, load_model, save_model
from models.coarse_fine import CoarseToFine
from models.config import ConfigError
from models.draws import Draws, SampleDraws
from models.generator import GroupGenerator
from models.parts.feeds.base import take
from models.parts.nets.classifier import Classifier, Protocol, shape_of
from models.parts.orders.base import Fixed
from models.protocols import Batch, Generator, Labels, Method, Tokenizer, Tokens

SIZE, CHANNELS, CLASSES, ROWS = 16, 1, 3, 8
NAMES = registry.names()


def tokenizer_spec(name: str) -> ModelSpec:
    """The tiny tokenizer of a recipe, given what it stands on: the base that its row of the table names, the data's classifier."""
    recipe = registry.get(name)
    given: dict[str, Any] = {"size": SIZE, "channels": CHANNELS}
    needs = recipe.config(recipe.tiny).needs
    if "tokenizer" in needs:
        given["tokenizer"] = tokenizer_spec(recipe.axes["codec"]).to_dict()
    if "features" in needs:
        given["features"] = shape_of(CHANNELS, CLASSES, Protocol(width=4, features=8))
    return ModelSpec("tokenizer", name, dict(recipe.tiny), {}, given)


def spec_of(name: str) -> ModelSpec:
    """The tiny model of a recipe; a generator is paired with the tokenizer that its row of the table names."""
    recipe = registry.get(name)
    if recipe.kind == "tokenizer":
        return tokenizer_spec(name)
    codec = tokenizer_spec(recipe.axes["codec"])
    tokenizer = codec.build()
    assert isinstance(tokenizer, Tokenizer)
    given = {"layout": tokenizer.layout.to_dict(), "classes": CLASSES, "tokenizer": codec.to_dict()}
    return ModelSpec("generator", name, dict(recipe.tiny), {}, given)


def build(name: str, seed: int = 0, base_steps: int = 0) -> Method:
    """The tiny model, with what it stands on: fresh, or a base tokenizer trained for some steps."""
    torch.manual_seed(seed)
    spec = spec_of(name)
    model = spec.build()
    stands: dict[str, Any] = {}
    if isinstance(model, Tokenizer) and spec.given.get("tokenizer"):
        stands["tokenizer"] = base = ModelSpec.from_dict(spec.given["tokenizer"]).build()
        for _ in optimize(base, batch_of(base), base_steps, lr=5e-3):
            pass
        base.finish(iter([batch_of(base)]))
    if isinstance(model, Tokenizer) and spec.given.get("features"):
        stands["features"] = Classifier.of(spec.given["features"])
    if stands:
        model.adopt(**stands)
    return model


def batch_of(model: Method, rows: int = ROWS, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    label = Labels(torch.arange(rows) % CLASSES)
    if isinstance(model, Generator):
        shape = (rows, model.layout.length) + ((model.layout.codebooks,) if model.layout.codebooks > 1 else ())
        return Batch(tokens=Tokens(torch.randint(model.layout.vocabulary, shape, generator=draw), model.layout), condition=label)
    coarse = torch.rand(rows, CHANNELS, 4, 4, generator=draw) * 2 - 1
    return Batch(image_BCHW=torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear"), condition=label)


def optimize(model: Method, batch: Batch, steps: int, lr: float = 3e-3) -> Iterator[dict[str, float]]:
    """A bare training loop over all phases."""
    model.train()
    trained = {phase: [p for _, p in model.phase_parameters(phase)] for phase in model.phases}  # nothing, for a codec that is not learned
    optimizers = {phase: torch.optim.AdamW(p or [{"params": []}], lr=lr, weight_decay=0) for phase, p in trained.items()}
    for step in range(steps):
        parts = {}
        for phase, optimizer in optimizers.items():
            draws = Draws.whole(0, step, batch.rows, steps, stream=phase)
            found = model.losses(batch, phase, draws)
            optimizer.zero_grad()
            if trained[phase]:
                found["loss"].backward()
            optimizer.step()
            parts |= {f"{phase}/{k}": float(v) for k, v in found.items() if v.numel() == 1}
        model.after_step(Draws.whole(0, step, batch.rows, steps, stream="after"))
        yield parts


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_and_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(name)
    # One step first: some parts start at zero and pass no gradient on until they have moved.
    for _ in optimize(model, batch_of(model), 2):
        pass
    touched: set[str] = set()
    resting: set[tuple[str, ...]] = set()
    for step in (5, 9):
        if (rest := model.resting(step / 10)) in resting:  # the same stage as before
            continue
        resting.add(rest)
        for phase in model.phases:
            model.zero_grad()
            parts = model.losses(batch_of(model), phase, Draws.whole(0, step, ROWS, 10, stream=phase))
            assert all(bool(v.isfinite().all()) for v in parts.values()), parts
            if model.phase_parameters(phase):
                parts["loss"].backward()
            moved = {n for n, p in model.phase_parameters(phase) if p.grad is not None and bool(p.grad.abs().sum() > 0)}
            assert not (wrong := {n for n in moved if n.startswith(rest)}), f"rest and get a gradient: {sorted(wrong)}"
            touched |= moved
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert touched == trainable, sorted(trainable - touched)


@pytest.mark.parametrize("name", NAMES)
def test_overfits_one_batch(name: str) -> None:
    model = build(name, base_steps=30)
    if not any(model.phase_parameters(phase) for phase in model.phases):
        pytest.skip("nothing is learned")
    batch = batch_of(model)
    key = f"{model.phases[0]}/{'reconstruction' if isinstance(model, Tokenizer) else 'loss'}"
    untrained = image_error(model, batch)
    staged = model.resting(0.0) != model.resting(0.9)
    history: list[dict[str, float]] = []
    # How many steps it takes is up to the draws: what counts is that it gets there. Stages go by the length of the run.
    for parts in optimize(model, batch, 150 if staged else 450, lr=5e-3):
        history.append(parts)
        if not staged and len(history) % 10 == 0 and recent(history, key) < 0.5 * history[0][key]:
            break
    if key in history[0]:
        first, last = history[0][key], recent(history, key)
    else:  # a stage without pixels comes first
        first, last = untrained, image_error(model, batch)
    assert last < 0.5 * first, (first, last)


def recent(history: list[dict[str, float]], key: str) -> float:
    """Mean over the last ten steps: one step's loss is a draw where a step draws what it masks."""
    return sum(row[key] for row in history[-10:]) / len(history[-10:])


@torch.no_grad()
def image_error(model: Method, batch: Batch) -> float:
    """Squared error of a tokenizer's images after encoding and decoding; 0 for a generator."""
    if not isinstance(model, Tokenizer):
        return 0.0
    assert batch.image_BCHW is not None
    model.eval()
    return float((model.decode(model.encode(batch.image_BCHW)) - batch.image_BCHW).square().mean())


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_are_equal(name: str, tmp_path: Path) -> None:
    model = build(name)
    for _ in optimize(model, batch_of(model), 2):
        pass
    save_model(tmp_path, spec_of(name), model.state_dict())
    again, spec = load_model(tmp_path)
    model.eval()
    batch = batch_of(model)
    if isinstance(model, Tokenizer) and isinstance(again, Tokenizer) and batch.image_BCHW is not None:
        tokens = model.encode(batch.image_BCHW)  # needs nothing but the model's own weights
        assert torch.equal(again.encode(batch.image_BCHW).data, tokens.data)
        assert torch.equal(again.decode(tokens), model.decode(tokens))
        if spec.config().needs:  # losses need what the model stands on
            again = build(name).eval()
            again.load_state_dict(load_file(str(tmp_path / "weights.safetensors")), strict=True)
    draws = [Draws.whole(0, 0, ROWS) for _ in range(2)]
    with torch.no_grad():
        assert torch.equal(model.losses(batch, model.phases[0], draws[0])["loss"], again.losses(batch, model.phases[0], draws[1])["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_loss(name: str) -> None:
    runs = [list(optimize(build(name), batch_of(build(name)), 3)) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", registry.names("tokenizer"))
def test_tokenizer_round_trip(name: str) -> None:
    model = build(name).eval()
    assert isinstance(model, Tokenizer)
    tokens = model.encode(batch_of(model).image_BCHW)  # type: ignore[arg-type]
    assert tokens.data.shape[0] == ROWS
    if tokens.layout.discrete:
        assert int(tokens.ids.min()) >= 0
        assert int(tokens.ids.max()) < tokens.layout.vocabulary
    image = model.decode(tokens)
    assert image.shape == (ROWS, CHANNELS, SIZE, SIZE)
    assert float(image.abs().max()) <= 1


@pytest.mark.parametrize("name", registry.names("generator"))
def test_generate_has_shape_range_and_repeats_with_its_seed(name: str) -> None:
    model = build(name).eval()
    assert isinstance(model, Generator)
    labels = Labels(torch.arange(5) % CLASSES)
    sampler = model.sampler.edited(guidance=0.5, top_k=0)  # type: ignore[union-attr, operator]
    first, again, other = (model.generate(labels, sampler, SampleDraws.of(s, 0, labels.rows)) for s in (1, 1, 2))
    alone = model.generate(labels.part(2, 3), sampler, SampleDraws.of(1, 2, 3))
    assert first.layout == model.layout
    assert first.ids.shape[:2] == (5, model.layout.length)
    assert int(first.ids.min()) >= 0
    assert int(first.ids.max()) < model.layout.vocabulary
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(alone.ids[0], first.ids[2]), "a sample depends on its own seed, not on its batch"
    assert not torch.equal(first.ids, other.ids)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_cached_decoding_equals_teacher_forcing(name: str) -> None:
    model = build(name)
    if not isinstance(model, GroupGenerator):
        pytest.skip("holds its own module")
    batch = batch_of(model)
    for _ in optimize(model, batch, 3):  # away from the zeros of the start
        pass
    model.eval()
    assert batch.tokens is not None
    assert isinstance(batch.condition, Labels)
    ids, sampler = batch.tokens.ids, model.sampler.edited(guidance=0.0)
    steps = list(model.decode_steps(batch.condition, sampler, SampleDraws.of(0, 0, batch.condition.rows), forced=ids))
    plan = model.order.decode(model.layout, ROWS, SampleDraws.of(0, 0, ROWS))
    if plan.choice is not None:
        pytest.skip("the model chooses its own groups")
    with torch.no_grad():
        taught = model(ids, batch.condition, plan)
        h = torch.cat([s.h_BnD for s in steps], dim=1)
        torch.testing.assert_close(h, taught.repeat_interleave(h.shape[1] // taught.shape[1], dim=1), atol=2e-5, rtol=1e-5)
        nll = torch.cat([model.head.nll(s.h_BnD, take(ids, s.place_Bn)) for s in steps], dim=1)
        torch.testing.assert_close(-nll.sum(1), model.log_prob(batch), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_guidance_mixes_conditional_and_null(name: str) -> None:
    model = build(name)
    if not isinstance(model, GroupGenerator):
        pytest.skip("holds its own module")
    batch = batch_of(model)
    for _ in optimize(model, batch, 3):
        pass
    model.eval()
    assert batch.tokens is not None
    assert isinstance(batch.condition, Labels)
    logits = {}
    null = model.condition.null(batch.condition)
    # The same groups in all three, also where the model would choose them by its logits.
    plan = replace(model.order.decode(model.layout, ROWS, SampleDraws.of(0, 0, ROWS)), choice=None)
    for key, condition, weight in (("c", batch.condition, 0.0), ("u", null, 0.0), ("g", batch.condition, 2.0)):
        sampler = model.sampler.edited(guidance=weight, guidance_schedule="constant")
        steps = model.decode_steps(condition, sampler, SampleDraws.of(0, 0, condition.rows), forced=batch.tokens.ids, plan=plan)
        found = [s.logits for s in steps]
        if any(part is None for part in found):
            pytest.skip("this head has no logits")
        logits[key] = torch.cat(found, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(logits["g"], 3 * logits["c"] - 2 * logits["u"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_other_steps_are_taken_or_refused_before_work(name: str) -> None:
    model = build(name).eval()
    assert isinstance(model, Generator)
    sampler = model.sampler.edited(guidance=0.0, steps=3)  # type: ignore[union-attr, operator]
    labels, draw = Labels(torch.arange(2) % CLASSES), SampleDraws.of(0, 0, 2)
    fixed = isinstance(model, CoarseToFine) or (isinstance(model, GroupGenerator) and isinstance(model.order, Fixed))
    if not fixed:
        model.check_sampler(sampler)
        assert model.generate(labels, sampler, draw).data.shape[:2] == (2, model.layout.length)
        return
    with pytest.raises(ConfigError, match=r"^sample\.steps"):
        model.check_sampler(sampler)
    if isinstance(model, GroupGenerator):
        with pytest.raises(ConfigError, match=r"^sample\.steps"):
            model.generate(labels, sampler, draw)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_reads_alone(name: str) -> None:
    recipe = registry.get(name)
    for word in ("New:", "Differs:", "Run:", "Expect:"):
        assert word in recipe.doc, f"the docstring of recipe {name!r} lacks {word!r}"
    assert f"arXiv:{recipe.paper}" in recipe.doc
    assert recipe.tiny, "a recipe needs tiny arguments for the contract tests"
    source = Path(__import__(recipe.function.__module__, fromlist=["_"]).__file__).read_text()
    assert len(source.splitlines()) <= 90, "a recipe is short: a part is missing"

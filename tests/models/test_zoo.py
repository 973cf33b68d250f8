"""Contract tests over the registry: whatever is registered is under all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from zoo import CHANNELS, CLASSES, EARLY, NAMES, ROWS, batch_of, batch_to_learn, build, early, optimize, spec_of, trained

from tokenloom.models.core import registry
from tokenloom.models.core.build import load_model, save_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Density, Generator, Labels, Tokenizer, tokens_of
from tokenloom.models.generators.group_denoiser import GroupDenoiser
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.feeds.base import take
from tokenloom.models.parts.orders.base import Fixed
from tokenloom.models.zoo.generators.acdit.module import ACDiT
from tokenloom.models.zoo.generators.arflow.module import ARFlow
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine
from tokenloom.models.zoo.generators.far_frequency.module import FrequencyGenerator
from tokenloom.models.zoo.generators.flowar.module import FlowAR
from tokenloom.models.zoo.generators.nextstep.module import NextStep
from tokenloom.models.zoo.generators.starflow.module import STARFlow


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_and_every_parameter_gets_a_gradient(name: str) -> None:
    model = early(name)  # some parts start at zero and pass no gradient on until they have moved
    touched: set[str] = set()
    stages: set[tuple[str, ...]] = set()
    for step in (5, 9):
        if (frozen := model.frozen_parameters(step / 10)) in stages:  # the same stage as before
            continue
        if stages:  # what ends a stage
            model.after_step(Draws.whole(0, 6, ROWS, 10))
        stages.add(frozen)
        for phase in model.phases:
            model.zero_grad()
            parts = model.losses(batch_of(model), phase, Draws.whole(0, step, ROWS, 10, stream=phase))
            assert all(bool(v.isfinite().all()) for v in parts.values()), parts
            if model.phase_parameters(phase):
                parts["loss"].backward()
            moved = {n for n, p in model.phase_parameters(phase) if p.grad is not None and bool(p.grad.abs().sum() > 0)}
            assert not (wrong := {n for n in moved if n.startswith(frozen)}), f"frozen, and get a gradient: {sorted(wrong)}"
            touched |= moved
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert touched == trainable, sorted(trainable - touched)


@pytest.mark.parametrize("name", NAMES)
def test_overfits_one_batch(name: str) -> None:
    found = trained(name)
    if not found.learns:
        pytest.skip("nothing is learned")
    assert found.after < 0.5 * found.before, (found.before, found.after, len(found.history))


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_are_equal(name: str, tmp_path: Path) -> None:
    model = early(name)
    save_model(tmp_path, spec_of(name), model.state_dict())
    again, spec = load_model(tmp_path)
    model.eval()
    batch = batch_of(model)
    if isinstance(model, Tokenizer) and isinstance(again, Tokenizer) and batch.signal is not None:
        tokens = model.encode(batch.signal)  # needs nothing but the model's own weights
        assert torch.equal(again.encode(batch.signal).data, tokens.data)
        assert torch.equal(again.decode(tokens), model.decode(tokens))
        if spec.config().needs:  # losses need what the model depends on
            again = build(name, base_steps=30).eval()
            again.load_state_dict(load_file(str(tmp_path / "weights.safetensors")), strict=True)
    draws = [Draws.whole(0, 0, ROWS) for _ in range(2)]
    with torch.no_grad():
        assert torch.equal(model.losses(batch, model.phases[0], draws[0])["loss"], again.losses(batch, model.phases[0], draws[1])["loss"])


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_loss(name: str) -> None:
    found = trained(name)
    again = build(name, base_steps=30)
    assert [row for _, row in zip(range(EARLY), optimize(again, batch_to_learn(again), found.steps))] == found.history[:EARLY]


@pytest.mark.parametrize("name", registry.names("tokenizer"))
def test_tokenizer_round_trip(name: str) -> None:
    model = early(name).eval()
    assert isinstance(model, Tokenizer)
    signal = batch_of(model).signal
    assert signal is not None
    tokens = model.encode(signal)
    assert tokens.data.shape[0] == ROWS
    if tokens.layout.discrete:
        assert int(tokens.ids.min()) >= 0
        assert int(tokens.ids.max()) < tokens.layout.vocabulary
    image = model.decode(tokens)
    assert image.shape == signal.shape
    assert float(image.abs().max()) <= 1


@pytest.mark.parametrize("name", registry.names("generator"))
def test_generate_has_shape_range_and_repeats_with_its_seed(name: str) -> None:
    model = early(name).eval()
    assert isinstance(model, Generator)
    labels = Labels(torch.arange(5) % CLASSES)
    sampler = model.sampler.edited(guidance=0.5, top_k=0)  # type: ignore[union-attr, operator]
    first, again, other = (model.generate(labels, sampler, SampleDraws.of(s, 0, labels.rows)) for s in (1, 1, 2))
    alone = model.generate(labels.part(2, 3), sampler, SampleDraws.of(1, 2, 3))
    assert first.layout == model.layout
    assert first.data.shape[:2] == (5, model.layout.length)
    assert torch.equal(first.data, again.data)
    assert not torch.equal(first.data, other.data)
    if model.layout.discrete:
        assert int(first.ids.min()) >= 0
        assert int(first.ids.max()) < model.layout.vocabulary
        assert torch.equal(alone.ids[0], first.ids[2]), "a sample depends on its own seed, not on its batch"
    else:  # kernels sum in another order for another number of rows
        assert bool(first.data.isfinite().all())
        scale = float(first.data.abs().max())
        torch.testing.assert_close(alone.data[0], first.data[2], atol=1e-4 * max(1.0, scale), rtol=1e-4)


@pytest.mark.parametrize("name", registry.names("density"))
def test_a_density_samples_signals_by_their_seeds_and_has_a_likelihood(name: str) -> None:
    model = early(name).eval()
    assert isinstance(model, Density)
    labels = Labels(torch.arange(5) % CLASSES)
    first, again, other = (model.sample(labels, SampleDraws.of(s, 0, 5)) for s in (1, 1, 2))
    alone = model.sample(labels.part(2, 3), SampleDraws.of(1, 2, 3))
    assert first.shape == (5, *model.shape)
    assert float(first.abs().max()) <= 1
    levels = (first + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)  # the values that data has
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # One level at most, where rounding decides: a sample depends on its own seed, not on its batch.
    torch.testing.assert_close(alone[0], first[2], atol=2 / 255 + 1e-6, rtol=0)
    assert (alone[0] == first[2]).float().mean() > 0.99
    batch = batch_of(model)
    with torch.no_grad():
        log_prob_B = model.log_prob(batch, Draws.whole(0, 0, ROWS))
    assert log_prob_B.shape == (ROWS,)
    assert model.likelihood in ("exact", "bound")
    bits = model.bits_per_dimension(log_prob_B)
    assert bool(((bits > 0) & (bits < 16)).all()), bits
    with pytest.raises(ConfigError, match="was built for signals of shape"):
        model.log_prob(Batch(signal=torch.zeros(2, CHANNELS, 3, 3)), Draws.whole(0, 0, 2))


@pytest.mark.parametrize("name", registry.names("generator"))
def test_cached_decoding_equals_teacher_forcing(name: str) -> None:
    model = early(name)
    if not isinstance(model, GroupGenerator):
        pytest.skip("holds its own module")
    batch = batch_of(model)
    model.eval()
    assert batch.tokens is not None
    assert isinstance(batch.conditions["class"], Labels)
    ids, sampler = tokens_of(batch.tokens), model.sampler.edited(guidance=0.0)
    steps = list(model.decode_steps(batch.conditions, sampler, SampleDraws.of(0, 0, batch.conditions.rows), forced=ids))
    plan = model.order.decode(model.layout, ROWS, SampleDraws.of(0, 0, ROWS))
    if plan.choice is not None:
        pytest.skip("the model chooses its own groups")
    with torch.no_grad():
        taught = model(ids, batch.conditions, plan)
        h = torch.cat([s.h_BnD for s in steps], dim=1)
        torch.testing.assert_close(h, taught.repeat_interleave(h.shape[1] // taught.shape[1], dim=1), atol=2e-5, rtol=1e-5)
        if model.head.likelihood == "none":
            return
        nll = torch.cat([model.head.loss(s.h_BnD, take(ids, s.place_Bn)) for s in steps], dim=1)
        torch.testing.assert_close(-nll.sum(1), model.log_prob(batch), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_guidance_mixes_conditional_and_null(name: str) -> None:
    model = early(name)
    if not isinstance(model, GroupGenerator):
        pytest.skip("holds its own module")
    batch = batch_of(model)
    model.eval()
    assert batch.tokens is not None
    assert isinstance(batch.conditions["class"], Labels)
    logits = {}
    null = model.condition.null(batch.conditions)
    # The same groups in all three, also where the model would choose them by its logits.
    plan = replace(model.order.decode(model.layout, ROWS, SampleDraws.of(0, 0, ROWS)), choice=None)
    for key, condition, weight in (("c", batch.conditions, 0.0), ("u", null, 0.0), ("g", batch.conditions, 2.0)):
        sampler = model.sampler.edited(guidance=weight, guidance_schedule="constant")
        steps = model.decode_steps(condition, sampler, SampleDraws.of(0, 0, condition.rows), forced=tokens_of(batch.tokens), plan=plan)
        found = [s.logits for s in steps]
        if any(part is None for part in found):
            pytest.skip("this head has no logits")
        logits[key] = torch.cat(found, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(logits["g"], 3 * logits["c"] - 2 * logits["u"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", registry.names("generator"))
def test_other_steps_are_taken_or_refused_before_work(name: str) -> None:
    model = early(name).eval()
    assert isinstance(model, Generator)
    sampler = model.sampler.edited(guidance=0.0, steps=3)  # type: ignore[union-attr, operator]
    labels, draw = Labels(torch.arange(2) % CLASSES), SampleDraws.of(0, 0, 2)
    fixed = isinstance(model, ACDiT | ARFlow | CoarseToFine | FlowAR | FrequencyGenerator | GroupDenoiser | NextStep | STARFlow)
    fixed = fixed or (isinstance(model, GroupGenerator) and isinstance(model.order, Fixed))
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

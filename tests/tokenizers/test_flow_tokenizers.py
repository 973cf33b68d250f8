"""Tokenizers whose decoder samples: prefixes, stages, consistency, fixed noise; standardised latents."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, Tokenizer, Tokens
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.decoders.token_dropout import Nested, Staged, prefixes
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.tokenizers.moving_norm import MovingNorm
from tokenloom.models.zoo.tokenizers.layton.decoder import SMALLEST, Consistency

ROWS, SIZE = 16, 16
FLOWS = ("flextok", "d_ar", "layton")


def spec(recipe: str, **more: Any) -> ModelSpec:
    entry = registry.get(recipe)
    given: dict[str, Any] = {"signal": signals.image(SIZE, 1).to_dict()}
    if recipe == "layton":
        given["tokenizer"] = spec("kl").to_dict()
    return ModelSpec("tokenizer", recipe, {**entry.tiny, **more}, {}, given)


def build(recipe: str, seed: int = 0, **more: Any) -> Tokenizer:
    torch.manual_seed(seed)
    model = spec(recipe, **more).build()
    assert isinstance(model, Tokenizer)
    return model


def flow(recipe: str, **more: Any) -> FlowTokenizer:
    model = build(recipe, **more)
    assert isinstance(model, FlowTokenizer)
    return model


def images(rows: int = ROWS, seed: int = 0) -> Tensor:
    """Smooth blobs in [-1, 1]."""
    coarse = torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def train(model: Tokenizer, steps: int, lr: float = 5e-3, micro: int = ROWS) -> list[dict[str, float]]:
    """Steps over one batch, cut into micro-batches whose losses are weighted by their rows."""
    model.train()
    optimizer = torch.optim.Adam([p for _, p in model.phase_parameters("main")], lr=lr)
    image, history = images().to(next(model.parameters())), []
    for step in range(steps):
        model.zero_grad()
        parts: dict[str, float] = {}
        for first in range(0, ROWS, micro):
            last = min(first + micro, ROWS)
            found = model.losses(Batch(image[first:last]), "main", Draws(0, step, steps, first, last, ROWS))
            (found["loss"] * ((last - first) / ROWS)).backward()
            for name, value in found.items():
                parts[name] = parts.get(name, 0.0) + float(value.detach()) * (last - first) / ROWS
        optimizer.step()
        model.after_step(Draws.whole(0, step, ROWS, steps))
        history.append(parts)
    return history


@cache
def trained(recipe: str) -> FlowTokenizer:
    """A tiny tokenizer that knows one batch."""
    model = flow(recipe)
    train(model, *((500, 1e-3) if recipe == "d_ar" else (300, 3e-3)))
    return model.eval()  # type: ignore[return-value]


def error(image_BCHW: Tensor) -> float:
    return float((image_BCHW - images()).square().mean())


def test_prefixes_decode_and_get_better_with_their_length() -> None:
    model = trained("flextok")
    tokens = model.encode(images())
    decoded = {k: model.decode_prefix(tokens, k) for k in prefixes(model.layout.length)}
    assert all(bool(image.isfinite().all()) and float(image.abs().max()) <= 1 for image in decoded.values())
    errors = [error(image) for image in decoded.values()]
    assert all(later <= 1.02 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.7 * errors[0], errors
    assert torch.equal(decoded[model.layout.length], model.decode(tokens))


def test_previews_belong_to_their_image_and_get_better_with_each_group() -> None:
    """Margins over three initialisations: previews 0.23 of another image's or less, all groups 0.79 of the first's, 0.49 of mixed ones."""
    model = trained("d_ar")
    tokens = model.encode(images())
    decoded = [model.decode_prefix(tokens, k) for k in (2, 4)]
    assert all(bool(image.isfinite().all()) for image in decoded)
    assert torch.equal(decoded[1], model.decode(tokens))
    errors = [error(image) for image in decoded]
    other = Tokens(tokens.ids.roll(1, 0), tokens.layout)
    assert all(mine < 0.5 * error(model.decode_prefix(other, k)) for mine, k in zip(errors, (2, 4))), errors
    assert errors[1] < errors[0], errors
    mixed = torch.cat((tokens.ids[:, :2], other.ids[:, 2:]), 1)  # the later group of another image
    assert errors[1] < 0.75 * error(model.decode(Tokens(mixed, tokens.layout))), errors


def test_a_group_of_tokens_steers_its_own_interval_and_none_before() -> None:
    model = flow("d_ar", tokens=6, groups=3, steps=6)
    train(model, 3)
    model.eval()
    decoder = model.decoder
    assert isinstance(decoder, Flow)
    tokens = model.encode(images())
    changed = tokens.ids.clone()
    changed[:, 2:] = (changed[:, 2:] + 5) % model.layout.vocabulary
    paths = []
    for data in (tokens.ids, changed):
        z_BNZ, keep_B = model.conditions(Tokens(data, model.layout))
        paths.append([x for x, _ in decoder.trajectory(z_BNZ, keep_B)])
    same = [torch.equal(a, b) for a, b in zip(*paths)]
    assert same == [True, True, False, False, False, False]  # tokens 0 and 1 steer steps 0 and 1
    z_BNZ, keep_B = model.conditions(tokens)
    cut = [x for x, _ in decoder.trajectory(z_BNZ, torch.full_like(keep_B, 4))]
    assert all(torch.equal(a, b) for a, b in zip(cut[:4], paths[0]))
    assert torch.equal(cut[5], cut[3])  # where the tokens end the row stands still


def test_tokens_that_are_not_kept_do_not_matter() -> None:
    model = trained("flextok")
    tokens = model.encode(images())
    changed = tokens.ids.clone()
    changed[:, 2:] = (changed[:, 2:] + 7) % model.layout.vocabulary
    lengths_B = torch.full((ROWS,), 2)
    whole = model.decode(Tokens(changed, model.layout, lengths_B))
    assert torch.equal(whole, model.decode(Tokens(tokens.ids[:, :2], model.layout, lengths_B)))
    assert not torch.equal(whole, model.decode(Tokens(changed, model.layout)))
    mixed = model.decode(Tokens(tokens.ids, model.layout, torch.tensor([2, 4] * (ROWS // 2))))
    torch.testing.assert_close(mixed[::2], whole[::2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1::2], model.decode(tokens)[1::2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", FLOWS)
def test_decoding_is_deterministic_and_the_same_in_any_batch(recipe: str) -> None:
    model = flow(recipe)
    train(model, 3)
    model.double().eval()
    tokens = model.encode(images().double())
    whole = model.decode(tokens)
    torch.manual_seed(7)
    assert torch.equal(whole, model.decode(tokens))
    torch.testing.assert_close(model.decode(replace(tokens, data=tokens.data[5:6])), whole[5:6], atol=1e-10, rtol=1e-10)
    assert float((whole[1:] - whole[:1]).abs().max()) > 1e-6  # the tokens matter


@pytest.mark.parametrize("recipe", FLOWS)
def test_too_few_or_too_many_tokens_are_refused(recipe: str) -> None:
    model = flow(recipe).eval()
    tokens = model.encode(images())
    fewest = {"flextok": 1, "d_ar": 2, "layton": 4}[recipe]
    assert model.decode_prefix(tokens, fewest).shape == (ROWS, 1, SIZE, SIZE)
    with pytest.raises(LayoutError, match="tokens a row"):
        model.decode_prefix(tokens, fewest - 1)
    with pytest.raises(LayoutError, match="tokens a row"):
        model.decode(Tokens(tokens.data[:, :2], model.layout, torch.full((ROWS,), 5)))
    with pytest.raises(LayoutError, match="positions"):
        Tokens(tokens.data[:, :2], model.layout)


@pytest.mark.parametrize("recipe", FLOWS)
def test_micro_batches_change_nothing(recipe: str) -> None:
    runs = []
    for micro in (ROWS, 6):
        model = flow(recipe).double()
        runs.append([h["loss"] for h in train(model, 6, micro=micro)])
    torch.testing.assert_close(runs[1], runs[0], atol=1e-9, rtol=1e-9)


def test_nested_dropout_keeps_what_it_says() -> None:
    draws = Draws.whole(0, 0, 4000)
    keep_B = Nested(choose="powers", none=0.2).keep(draws, 12)
    counts = {k: int((keep_B == k).sum()) for k in (0, 1, 2, 4, 8, 12)}
    assert sum(counts.values()) == 4000
    assert 700 < counts[0] < 900
    assert all(560 < counts[k] < 720 for k in (1, 2, 4, 8, 12)), counts
    assert set(Nested(choose="uniform").keep(draws, 5).tolist()) == {1, 2, 3, 4, 5}
    seen_BN = Nested().seen(torch.tensor([0.0, 0.9]), torch.tensor([1, 3]), 4)
    assert seen_BN.tolist() == [[True, False, False, False], [True, True, True, False]]


def test_stages_begin_where_their_interval_does() -> None:
    rule = Staged(groups=3)
    t_B = torch.tensor([i / 6 for i in range(6)])
    assert rule.shown(t_B, 6).tolist() == [2, 2, 4, 4, 6, 6]
    with pytest.raises(ConfigError, match=r"reveal\.groups=3"):
        flow("d_ar", tokens=4, groups=3, steps=6)


def test_guidance_mixes_the_velocities_with_and_without_tokens() -> None:
    model = flow("flextok", guidance=1.5)
    train(model, 3)
    model.eval()
    decoder = model.decoder
    assert isinstance(decoder, Flow)
    z_BNZ, _ = model.conditions(model.encode(images()))
    t_B, x_BCHW = torch.full((ROWS,), 0.3), images(seed=3)
    seen_BN = torch.ones(ROWS, 4, dtype=torch.bool)
    given, null = (decoder.velocity(x_BCHW, t_B, z_BNZ, seen) for seen in (seen_BN, ~seen_BN))
    torch.testing.assert_close(decoder._guided(x_BCHW, t_B, z_BNZ, seen_BN), 2.5 * given - 1.5 * null, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"decoder\.guidance=1"):
        replace(decoder.config, reveal=Nested())


def consistency() -> Consistency:
    decoder = flow("layton").decoder
    assert isinstance(decoder, Consistency)
    return decoder


def test_the_consistency_function_is_the_identity_without_noise() -> None:
    decoder = consistency()
    x_Bchw, z_BNZ = torch.randn(3, *decoder.shape), torch.randn(3, 4, 4)
    assert torch.equal(decoder(x_Bchw, torch.full((3,), SMALLEST), z_BNZ), x_Bchw)
    assert not torch.allclose(decoder(x_Bchw, torch.full((3,), 1.0), z_BNZ), x_Bchw, atol=0.1)


def test_noise_levels_run_from_the_smallest_to_the_largest() -> None:
    decoder = consistency()
    sigma = decoder.sigmas(torch.arange(5.0), 5)
    torch.testing.assert_close(sigma[[0, 4]], torch.tensor([SMALLEST, decoder.config.largest]))
    assert bool((sigma.diff() > 0).all())
    assert [decoder.level_count(p) for p in (0.0, 0.34, 0.67, 0.999)] == [10, 20, 40, 40]


def test_two_noise_levels_of_a_step_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, asked = consistency(), []
    sigmas = decoder.sigmas
    monkeypatch.setattr(decoder, "sigmas", lambda place, levels: asked.append((place, levels)) or sigmas(place, levels))
    image, z = torch.rand(400, 1, SIZE, SIZE) * 2 - 1, torch.randn(400, 4, 4)
    for step in range(10):
        decoder.losses(z, image, Draws.whole(0, step, 400, 10))
    assert {levels for _, levels in asked} == {10, 20, 40}
    for (low, levels), (high, _) in zip(asked[::2], asked[1::2]):
        assert torch.equal(high, low + 1)
        assert set(low.tolist()) == {float(i) for i in range(levels - 1)}


def test_the_base_is_copied_and_stays_as_it_is() -> None:
    base = build("kl", seed=5)
    model = flow("layton")
    model.adopt(tokenizer=base)
    train(model, 3)
    found = {k.removeprefix("decoder.base."): v for k, v in model.state_dict().items() if k.startswith("decoder.base.")}
    assert found.keys() == base.state_dict().keys()
    assert all(torch.equal(v, found[k]) for k, v in base.state_dict().items())
    assert not any(name.startswith("decoder.base.") for name, _ in model.phase_parameters("main"))
    on_codes = replace(spec("layton"), given=spec("layton").given | {"tokenizer": spec("vq").to_dict()})
    with pytest.raises(ConfigError, match="continuous"):
        on_codes.build()


def test_moving_norm_standardises_in_spite_of_a_drift() -> None:
    norm = MovingNorm.Config().build(2, (1, 3))
    norm.train()
    draw = torch.Generator().manual_seed(0)
    for step in range(200):
        # values of size 0.01 around means that move by five times as much a step
        z_BChw = 0.01 * torch.randn(64, 2, 1, 3, generator=draw) + 0.05 * step
        norm(z_BChw, Draws.whole(0, step, 64))
        norm.after_step()
    norm.eval()
    z_BChw = 0.01 * torch.randn(4096, 2, 1, 3, generator=draw) + norm.mean
    found = norm(z_BChw)
    torch.testing.assert_close(found.mean(0), torch.zeros(2, 1, 3), atol=0.1, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(2, 1, 3), atol=0.1, rtol=0)
    torch.testing.assert_close(norm(z_BChw[:1]), found[:1])

"""FlexTok and D-AR as published: causal registers, a reader of tokens, a step of one group, velocities, latents of a base, alignment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tokenizers import SHAPE
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.decoders.flow import Flow
from tokenloom.models.parts.decoders.token_dropout import Staged
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.models.tokenizers.on_latents import LatentFlow

ROWS = 4


def flow(recipe: str, **more: Any) -> FlowTokenizer:
    entry, given = registry.get(recipe), {"signal": signals.image(16, 1).to_dict()}
    if more.get("space") == "latents":
        base = registry.get("kl")
        given["tokenizer"] = ModelSpec("tokenizer", "kl", dict(base.tiny), {}, dict(given)).to_dict()
    if more.get("semantic"):
        given["features"] = dict(SHAPE)
    torch.manual_seed(0)
    model = ModelSpec("tokenizer", recipe, {**entry.tiny, **more}, {}, given).build()
    assert isinstance(model, FlowTokenizer)
    return model


def images() -> Tensor:
    return torch.rand(ROWS, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("recipe", ["flextok", "d_ar"])
def test_a_register_does_not_depend_on_those_after_it(recipe: str) -> None:
    model = flow(recipe, registers="causal")
    encoder, x = model.encoder, images()
    with torch.no_grad():
        before = encoder(x)
        step = torch.randn_like(encoder.queries[2])
        encoder.queries[2] += step
        after = encoder(x)
        changed = (before - after).abs().amax((0, 1, 2)) > 1e-6
        assert changed.tolist() == [False, False, True, True]
        encoder.queries[2] -= step
        assert (encoder(x) - encoder(1 - x)).abs().amax((0, 1, 2)).min() > 1e-6  # each sees the patches
        free = flow(recipe, registers="all").encoder
        whole = free(x)
        free.queries[2] += step
        assert ((whole - free(x)).abs().amax((0, 1, 2)) > 1e-6).all()


def test_a_token_is_read_with_those_before_it_alone() -> None:
    model = flow("d_ar", reader=1)
    assert model.reader is not None
    z = torch.randn(2, 4, 4)
    other = z.clone()
    other[:, 2] += 1
    changed = (model.reader(z) - model.reader(other)).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, True]


def test_step_k_sees_group_k() -> None:
    rule, u = Staged(groups=4, sight="own"), torch.tensor([0.0, 0.3, 0.6, 0.99])
    seen = rule.seen(u, torch.full((4,), 8), 8)
    assert seen.int().tolist() == [[0] * 2 * k + [1, 1] + [0] * (6 - 2 * k) for k in range(4)]
    assert not rule.seen(torch.tensor([0.6]), torch.tensor([4]), 8).any()  # a row that has only two groups
    appeared = Staged(groups=4).seen(u, torch.full((4,), 8), 8)
    assert appeared.sum(1).tolist() == [2, 4, 6, 8]
    assert registry.get("d_ar").config({"reader": 1}).decoder.reveal.sight == "own"  # type: ignore[attr-defined]
    assert registry.get("d_ar").config().decoder.reveal.sight == "appeared"  # type: ignore[attr-defined]


def test_a_net_that_predicts_the_velocity_is_trained_on_its_error() -> None:
    """The loss, written down again: |net(x_t) - (image - noise)|^2."""
    model = flow("flextok", predict="velocity")
    decoder, x = model.decoder, images()
    assert isinstance(decoder, Flow)
    draws = Draws(0, 3, 10, 0, ROWS, ROWS)
    z = torch.randn(ROWS, 4, 3)
    with torch.no_grad():
        found, reports = decoder.losses(z, x, draws)
        again = Draws(0, 3, 10, 0, ROWS, ROWS)
        noise, u = again.normal(1, 16, 16), again.uniform()
        keep = decoder.config.reveal.keep(again, 4)
        t = decoder.time(u)
        tokens = torch.where(decoder.config.reveal.seen(u, keep, 4)[..., None], decoder.net.embed(z), decoder.unseen)
        t4 = t[:, None, None, None]
        velocity = decoder.net((1 - t4) * noise + t4 * x, t, tokens)
    torch.testing.assert_close(found["flow"], (velocity - (x - noise)).square().mean())
    error = ((1 - t4) * (velocity - (x - noise))).square().mean()
    torch.testing.assert_close(reports["reconstruction"], error)


def test_flextok_on_the_latents_of_a_base() -> None:
    model = flow("flextok", space="latents", patch=1, predict="velocity")
    decoder, x = model.decoder, images()
    assert isinstance(decoder, LatentFlow)
    assert model.config.needs == ("tokenizer",)
    assert not any(p.requires_grad for p in decoder.base.parameters())
    latents = decoder.clean(x)
    assert latents.shape[1:] == decoder.shape == decoder.flow.get_buffer("noise").shape[1:]
    with torch.no_grad():
        torch.testing.assert_close(model.latents(x), model.norm(model.quant_conv(model.encoder(latents)), None))  # type: ignore[misc]
        torch.testing.assert_close(decoder.pixels(latents), decoder.base.decode(decoder.base.encode(x)), atol=2.0, rtol=0)
    model.train()
    assert not decoder.base.training
    found = model.losses(Batch(signal=x), "main", Draws(0, 0, 10, 0, ROWS, ROWS))
    found["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    tokens = model.encode(x)
    assert model.decode_prefix(tokens, 2).shape == x.shape
    with pytest.raises(ConfigError, match="needs an autoencoder"):
        registry.get("flextok").config({"space": "latents"}).build(signal=signals.image(16, 1))


@pytest.mark.parametrize("recipe", ["flextok", "d_ar"])
def test_the_flow_is_aligned_with_a_teacher(recipe: str) -> None:
    """REPA: the patches' features after a block point where the teacher's of the clean image do."""
    model = flow(recipe, semantic=0.5, semantic_depth=1)
    assert model.config.needs == ("features",)
    model.adopt(features=Classifier.of(SHAPE))
    assert model.semantic is not None
    found = model.losses(Batch(signal=images()), "main", Draws(0, 0, 10, 0, ROWS, ROWS))
    assert 0 < float(found["semantic"]) <= 1.0
    found["loss"].backward()
    assert model.decoder.net.patches.weight.grad is not None  # type: ignore[union-attr]
    assert all(p.grad is not None for p in model.semantic.parameters())
    with pytest.raises(ConfigError, match=r"depth=7: the decoder's net has 1 blocks"):
        flow(recipe, semantic=0.5, semantic_depth=7)


def layton(**more: Any) -> FlowTokenizer:
    entry, given = registry.get("layton"), {"signal": signals.image(16, 1).to_dict()}
    given["tokenizer"] = ModelSpec("tokenizer", "kl", dict(registry.get("kl").tiny), {}, dict(given)).to_dict()
    torch.manual_seed(0)
    model = ModelSpec("tokenizer", "layton", {**entry.tiny, **more}, {}, given).build()
    assert isinstance(model, FlowTokenizer)
    return model


def test_layton_is_trained_against_a_discriminator_of_its_own_phase() -> None:
    assert layton().phases == ("main",)
    model = layton(adversarial=0.5, adversarial_start=1)
    assert model.phases == ("autoencoder", "discriminator")
    assert [model.begins(phase) for phase in model.phases] == [0, 1]
    names = {phase: {name for name, _ in model.phase_parameters(phase)} for phase in model.phases}
    assert all(name.startswith("decoder.adversarial.") for name in names["discriminator"])
    assert not names["autoencoder"] & names["discriminator"]
    batch, early, late = Batch(signal=images()), Draws(0, 0, 10, 0, ROWS, ROWS), Draws(0, 2, 10, 0, ROWS, ROWS)
    model.train()
    assert float(model.losses(batch, "discriminator", early)["loss"]) == 0.0
    found = model.losses(batch, "discriminator", late)
    assert float(found["loss"]) > 0.5
    found["loss"].backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == names["discriminator"]
    model.zero_grad()
    assert "adversarial" in model.losses(batch, "autoencoder", late)
    assert model.after_step(late)["adversarial_ratio"] > 0
    later = model.losses(batch, "autoencoder", late)
    assert float(later["adversarial"]) != 0
    later["loss"].backward()
    assert all(p.grad is None for _, p in model.phase_parameters("discriminator"))

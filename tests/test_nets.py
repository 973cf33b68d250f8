"""Nets of tokenizers: shapes, what may and may not reach what, precision under autocast, continuous latents, robust adversarial phases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.autoencoder import Autoencoder
from models.build import ModelSpec
from models.config import ConfigError
from models.draws import Draws
from models.parts.losses import Adversarial
from models.parts.nets.base import Net, signed, unit
from models.parts.nets.conv import Geometry
from models.parts.nets.discriminator import PatchDiscriminator
from models.parts.nets.maskgit_conv import MaskGITConv, OutputShortcutBlock
from models.parts.nets.queries import CodeQueries, Queries, QueryEncoder
from models.parts.nets.vit import Blocks, Patches, PatchPixels, Trunk, ViT, patchify, unpatchify
from models.parts.quantizers.gaussian import Gaussian
from models.protocols import Batch
from models.settings import TrainSettings
from tasks.train_state import TrainState

BLOCKS = Blocks.Config(width=16, depth=2, heads=2)
NETS: dict[str, Net] = {
    "maskgit": MaskGITConv(channels=8, multipliers=(1, 2), blocks=1, patch=2, norm_groups=4),
    "vit": ViT(patch=4, encoder_blocks=BLOCKS, decoder_blocks=BLOCKS),
    "queries": Queries(patch=4, tokens=5, encoder_blocks=BLOCKS, decoder_blocks=BLOCKS),
    "scrambled": Queries(patch=4, tokens=5, encoder_blocks=BLOCKS, decoder_blocks=BLOCKS, reading="scrambled"),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- every net ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_encoder_and_decoder_meet_on_the_grid(name: str) -> None:
    net, image = NETS[name], random(2, 3, 16, 16)
    torch.manual_seed(0)
    z = net.encoder(16, 3, 6)(image)
    assert z.shape == (2, 6, *net.grid(16))
    decoder = net.decoder(16, 3, 6)
    assert decoder(z).shape == image.shape
    assert any(decoder.last is p for p in decoder.parameters())
    assert net.axis == ("grid" if name in ("maskgit", "vit") else "sequence")


@pytest.mark.parametrize("name", NETS)
def test_a_size_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="size=18"):
        NETS[name].grid(18)


@pytest.mark.parametrize("name", NETS)
def test_rows_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(0)
    encoder, decoder = NETS[name].encoder(16, 1, 6).eval(), NETS[name].decoder(16, 1, 6).eval()
    image = random(4, 1, 16, 16)
    with torch.no_grad():
        whole, alone = decoder(encoder(image)), decoder(encoder(image[2:3]))
    torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv", *NETS])
def test_norms_keep_single_precision_under_autocast(name: str) -> None:
    """What leaves a norm is float32, and equal to what float32 makes of the same input."""
    net = NETS.get(name) or Geometry(channels=8, multipliers=(1, 2), norm_groups=4)
    torch.manual_seed(0)
    modules = nn.Sequential(net.encoder(16, 1, 6), net.decoder(16, 1, 6))
    seen = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            seen.append((output, exact_norm(module, inputs[0].float())))

    norms = [m for m in modules.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
    handles = [m.register_forward_hook(look) for m in norms]
    with torch.autocast("cpu", torch.bfloat16):
        out = modules(random(2, 1, 16, 16))
    for handle in handles:
        handle.remove()
    assert len(seen) == len(norms) > 0
    for got, expected in seen:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert bool(out.isfinite().all())


def exact_norm(module: nn.Module, x: Tensor) -> Tensor:
    """The norm in float32, written out."""
    if isinstance(module, nn.LayerNorm):
        return nn.functional.layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
    assert isinstance(module, nn.GroupNorm)
    return nn.functional.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)


# --- patches and blocks -------------------------------------------------------------------------------------------


def test_patches_are_cut_and_put_back() -> None:
    image = random(2, 3, 8, 12)
    cut = patchify(image, 4)
    assert cut.shape == (2, 6, 48)
    assert torch.equal(cut[1, 4], image[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())  # second row, second column; (row, column, channel)
    assert torch.equal(unpatchify(cut, 4, (2, 3)), image)


def test_patches_embed_what_patchify_cuts() -> None:
    torch.manual_seed(0)
    patches, image = Patches(3, 4, 10), random(2, 3, 8, 8)
    weight = patches.weight.permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(patches(image), patchify(image, 4) @ weight.T + patches.bias, atol=1e-5, rtol=1e-5)


def test_patch_pixels_place_each_vector_at_its_patch() -> None:
    torch.manual_seed(0)
    head, x = PatchPixels(6, 4, 1, (2, 2)), torch.zeros(1, 4, 6)
    x[0, 2] = 1.0
    changed = (head(x) - head(torch.zeros_like(x)))[0, 0].abs() > 1e-6
    assert bool(changed[4:, :4].all())
    assert not bool(changed[:4].any())
    assert not bool(changed[4:, 4:].any())


def test_a_mask_hides_slots() -> None:
    """With a causal mask what comes later changes nothing before it."""
    torch.manual_seed(0)
    stack, x = BLOCKS.build(), random(2, 7, 16)
    mask = torch.ones(7, 7).tril().bool()[None, None]
    later = x.clone()
    later[:, 5:] += 1.0
    with torch.no_grad():
        a, b, free = stack(x, mask), stack(later, mask), stack(later)
    torch.testing.assert_close(a[:, :5], b[:, :5], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(a[:, :5], free[:, :5], atol=1e-3)


def test_cross_attention_reads_the_context_that_it_may_see() -> None:
    torch.manual_seed(0)
    stack = replace(BLOCKS, context=6).build()
    x, context = random(2, 3, 16), random(2, 4, 6, seed=1)
    mask = torch.tensor([True, True, False, False])[None, None, None]
    other = context.clone()
    other[:, 2:] += 1.0
    with torch.no_grad():
        assert not torch.allclose(stack(x, None, context), stack(x, None, other), atol=1e-3)
        a, b = (stack(x, None, c, None, mask) for c in (context, other))
    torch.testing.assert_close(a, b)


def test_condition_gates_start_closed_and_open() -> None:
    torch.manual_seed(0)
    stack = replace(BLOCKS, cond=5).build()
    x, cond = random(2, 3, 16), random(2, 5, seed=1)
    assert torch.equal(stack(x, None, None, cond), x)
    for block in stack.blocks:
        nn.init.normal_(block.modulation.weight, std=0.1)
    out = stack(x, None, None, cond)
    assert not torch.allclose(out, x, atol=1e-3)
    assert not torch.allclose(out, stack(x, None, None, -cond), atol=1e-3)


def test_a_trunk_tells_places_apart() -> None:
    torch.manual_seed(0)
    trunk, same = Trunk(BLOCKS, 4, 3), torch.ones(1, 4, 16)
    patches, further = trunk(same, torch.ones(1, 3, 16))
    assert patches.shape == (1, 4, 16)
    assert further.shape == (1, 3, 16)
    for x in (patches[0], further[0]):
        assert bool((torch.cdist(x, x) + torch.eye(len(x)) > 1e-2).all())


def test_impossible_blocks_are_refused() -> None:
    for fields in ({"width": 15}, {"depth": 0}, {"ratio": 0.0}, {"cond": -1}):
        with pytest.raises(ConfigError, match="blocks"):
            replace(BLOCKS, **fields)


# --- MaskGIT's convolutions ---------------------------------------------------------------------------------------


def test_the_shortcut_takes_the_blocks_own_output() -> None:
    """With the last convolution at zero nothing is left of the input where the width changes, and all of it where it does not."""
    torch.manual_seed(0)
    x = random(1, 8, 4, 4)
    for width, expected in ((8, x), (16, torch.zeros(1, 16, 4, 4))):
        block = OutputShortcutBlock(8, width, 4)
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), expected)


def test_unit_and_signed_are_inverse() -> None:
    x = torch.linspace(-1, 1, 9)
    assert float(unit(x).min()) == 0
    assert float(unit(x).max()) == 1
    torch.testing.assert_close(signed(unit(x)), x)


# --- queries ------------------------------------------------------------------------------------------------------


def test_scrambled_reading_takes_the_block_of_numbers_the_other_way() -> None:
    """The same weights: the scrambled latents are a linear map of the D x N reading of the queries' N x D vectors."""
    torch.manual_seed(0)
    encoder, image = NETS["scrambled"].encoder(16, 1, 6), random(2, 1, 16, 16)
    assert isinstance(encoder, QueryEncoder)
    with torch.no_grad():
        patches = encoder.patches(unit(image))
        x_BND = encoder.trunk(patches, encoder.queries.expand(2, -1, -1))[1]
        expected = torch.einsum("ld,bdn->bln", encoder.out.weight, x_BND.reshape(2, 16, 5)) + encoder.out.bias[None, :, None]
        got = encoder(image)
    torch.testing.assert_close(got[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_code_queries_give_logits_on_the_patch_grid() -> None:
    net = CodeQueries(patch=4, tokens=5, encoder_blocks=BLOCKS, decoder_blocks=BLOCKS, codes=11)
    assert net.decoder(16, 1, 6)(random(2, 6, 1, 5)).shape == (2, 11, 4, 4)


def test_impossible_queries_are_refused() -> None:
    for fields in ({"tokens": 0}, {"smooth": 2}):
        with pytest.raises(ConfigError, match="net"):
            replace(NETS["queries"], **fields)


# --- continuous latents -------------------------------------------------------------------------------------------


def gaussian(**fields: Any) -> Gaussian:
    quantizer = Gaussian.Config(**({"dim": 3, "kl": 1.0} | fields)).build((2, 4))
    assert isinstance(quantizer, Gaussian)
    return quantizer


def test_divergence_is_that_of_normals() -> None:
    mean, logvar = random(2, 3, 2, 4), 0.3 * random(2, 3, 2, 4, seed=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian.divergence(mean, logvar), expected)


def test_training_samples_from_draws_and_tokens_are_means() -> None:
    quantizer, moments = gaussian().train(), random(8, 6, 2, 4)
    mean, logvar = quantizer.posterior(moments)
    z = quantizer(moments, Draws.whole(0, 3, 8)).z
    noise = Draws.whole(0, 3, 8).normal(3, 2, 4)
    torch.testing.assert_close(z, mean + (0.5 * logvar).exp() * noise)
    assert torch.equal(quantizer(moments).z, mean)  # no draws
    assert torch.equal(quantizer.eval()(moments, Draws.whole(0, 3, 8)).z, mean)
    tokens = quantizer.encode(moments)
    assert tokens.shape == (8, 8, 3)
    assert torch.equal(tokens[0, 5], mean[0, :, 1, 1])
    torch.testing.assert_close(quantizer.lookup(tokens), mean)


def test_shares_of_a_batch_see_the_same_noise() -> None:
    quantizer, moments = gaussian().train(), random(8, 6, 2, 4)
    whole = quantizer(moments, Draws.whole(0, 3, 8)).z
    shares = [quantizer(moments[a:b], Draws(0, 3, 1, a, b, 8)).z for a, b in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat(shares), whole)


def test_scale_is_measured_after_training_or_given() -> None:
    moments = [5 * random(16, 6, 2, 4, seed=s) + 2 for s in range(4)]
    quantizer = gaussian()
    quantizer.finish(iter(moments))
    tokens = torch.cat([quantizer.encode(m) for m in moments])
    assert float(tokens.std()) == pytest.approx(1.0, rel=1e-3)
    torch.testing.assert_close(quantizer.lookup(tokens[:16]), quantizer.posterior(moments[0])[0])
    again = gaussian()
    again.load_state_dict(quantizer.state_dict())
    assert float(again.scale) == float(quantizer.scale)
    given = gaussian(scale=0.25)
    given.finish(iter(moments))
    assert float(given.scale) == 0.25


def test_variances_stay_finite() -> None:
    quantizer = gaussian().train()
    moments = torch.full((2, 6, 2, 4), 1e4, requires_grad=True)
    found = quantizer(moments, Draws.whole(0, 0, 2))
    assert bool(found.losses["kl"].isfinite())
    with pytest.raises(ConfigError, match="scale"):
        Gaussian.Config(dim=3, scale=0.0)


def test_latents_are_exact_under_autocast() -> None:
    quantizer, moments = gaussian().eval(), random(2, 6, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(moments.bfloat16())
    assert half.z.dtype == torch.float32
    torch.testing.assert_close(half.losses["kl"], quantizer(moments.bfloat16().float()).losses["kl"])


# --- an adversarial phase that starts in the middle ----------------------------------------------------------------


def tokenizer(**args: Any) -> Autoencoder:
    torch.manual_seed(0)
    base = {"channels": 8, "multipliers": [1, 1], "patch": 4, "codes": 32, "dim": 4}
    model = ModelSpec("tokenizer", "vq", base | args, {}, {"size": 16, "channels": 1}).build()
    assert isinstance(model, Autoencoder)
    return model


def blobs(rows: int, seed: int) -> Tensor:
    coarse = torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, 16, mode="bilinear")


def held_out_errors(weight: float, start: int, steps: int, every: int = 25) -> list[float]:
    """Squared error on held-out images every so many steps, trained as the loop does: a clipped AdamW a phase."""
    model, rows = tokenizer(adversarial=weight, adversarial_start=start).train(), 16
    state, held, errors = TrainState(model, TrainSettings(steps=steps)), blobs(64, -1), []
    for step in range(steps):
        for phase in state.phases:
            phase.clear()
            with state.only(phase):
                model.losses(Batch(blobs(rows, step)), phase.phase, Draws.whole(0, step, rows, steps, stream=phase.phase))[
                    "loss"
                ].backward()
            phase.clip()
            phase.step(step, steps)
        model.after_step(Draws.whole(0, step, rows, steps))
        if (step + 1) % every == 0:
            with torch.no_grad():
                errors.append(float((model.decode(model.encode(held)) - held).square().mean()))
    return errors


@pytest.mark.parametrize("weight", [0.5, 1000.0])
def test_an_adversarial_start_in_mid_training_keeps_the_reconstruction(weight: float) -> None:
    """However large the weight, the adversarial gradient stays within that of the reconstruction."""
    errors = held_out_errors(weight, start=100, steps=200)
    before, after = errors[3], errors[4:]
    assert before < 0.9 * errors[0]
    assert max(after) < 1.2 * before, errors


def test_a_weight_counts_up_to_its_ceiling() -> None:
    image = random(2, 1, 16, 16)
    found = []
    for weight in (1.0, 1000.0):
        torch.manual_seed(0)
        loss = Adversarial.Config(weight=weight, discriminator=PatchDiscriminator.Config(channels=8)).build(1, torch.Size((1,)))
        loss.ratio.fill_(2.0)
        found.append(loss.eval().generator_loss(image, image.mean(), image, 0, 2, 2))
        fake = -loss.discriminator(image).mean()
    assert float(found[0].detach()) == pytest.approx(2.0 * float(fake.detach()), rel=1e-5)
    assert torch.equal(found[0], found[1])
    with pytest.raises(ConfigError, match="ceiling"):
        Adversarial.Config(ceiling=-1.0)


def test_a_discriminator_that_is_off_costs_no_reconstruction() -> None:
    """Before its start the phase is worth zero, gives every parameter a gradient of zero, and runs no net."""
    model = tokenizer(adversarial=0.5, adversarial_start=3).train()
    ran: list[int] = []
    handles = [m.register_forward_hook(lambda *_: ran.append(1)) for m in (model.encoder, model.adversarial.discriminator)]  # type: ignore[union-attr]
    for step, runs in ((2, 0), (3, 3)):
        ran.clear()
        model.zero_grad(set_to_none=True)
        parts = model.losses(Batch(blobs(4, 0)), "discriminator", Draws.whole(0, step, 4, 10))
        parts["loss"].backward()
        assert set(parts) == {"loss", "discriminator"}
        assert len(ran) == runs
        gradients = [p.grad for _, p in model.phase_parameters("discriminator")]
        assert all(g is not None for g in gradients)
        assert any(bool(g.abs().sum() > 0) for g in gradients if g is not None) == (step >= 3)
    for handle in handles:
        handle.remove()

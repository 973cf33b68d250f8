"""The convolutional tokenizer: phases and gradients, losses, shares of a batch, previews, impossible values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, LayoutError, TokenLayout, Tokens
from tokenloom.models.parts.adversarial.loss import Adversarial
from tokenloom.models.parts.adversarial.patch import PatchDiscriminator
from tokenloom.models.parts.losses import Perceptual
from tokenloom.models.parts.nets.conv import Decoder, Encoder, Geometry
from tokenloom.models.tokenizers.autoencoder import Autoencoder, grid

ROWS, SIZE = 8, 16
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vq": ("vq", {}),
    "var_vq": ("var_vq", {}),
    "vq_adversarial": ("vq", {"adversarial": 0.5}),
    "var_vq_adversarial": ("var_vq", {"adversarial": 0.5, "attention": [1]}),
}


def build(case: str, seed: int = 0, channels: int = 1, **more: Any) -> Autoencoder:
    recipe, args = CASES[case]
    spec = ModelSpec(
        "tokenizer", recipe, {**registry.get(recipe).tiny, **args, **more}, {}, {"signal": signals.image(SIZE, channels).to_dict()}
    )
    torch.manual_seed(seed)
    model = spec.build()
    assert isinstance(model, Autoencoder)
    return model


def images(rows: int = ROWS, channels: int = 1, seed: int = 0) -> Tensor:
    """Smooth blobs in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, channels, 4, 4, generator=draw) * 2 - 1
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def train(model: Autoencoder, steps: int, micro: int = ROWS, lr: float = 3e-3) -> list[dict[str, float]]:
    """Steps over one batch, cut into micro-batches whose losses are weighted by their rows."""
    model.train()
    optimizers = {p: torch.optim.Adam([v for _, v in model.phase_parameters(p)], lr=lr) for p in model.phases}
    image, history = images().to(next(model.parameters())), []
    for step in range(steps):
        parts: dict[str, float] = {}
        for phase, optimizer in optimizers.items():
            model.zero_grad()
            for first in range(0, ROWS, micro):
                last = min(first + micro, ROWS)
                found = model.losses(Batch(image[first:last]), phase, Draws(0, step, steps, first, last, ROWS, stream=phase))
                (found["loss"] * ((last - first) / ROWS)).backward()
                for name, value in found.items():
                    parts[name] = parts.get(name, 0.0) + float(value.detach()) * (last - first) / ROWS
            optimizer.step()
        parts |= model.after_step(Draws.whole(0, step, ROWS, steps))
        history.append(parts)
    return history


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient_from_its_own_phase(case: str) -> None:
    model = build(case)
    assert model.phases == (("autoencoder", "discriminator") if "adversarial" in case else ("main",))
    train(model, 2)
    owners: dict[str, str] = {}
    for phase in model.phases:
        model.zero_grad(set_to_none=True)
        model.losses(Batch(images()), phase, Draws.whole(0, 2, ROWS, 10, stream=phase))["loss"].backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
        wanted = {n for n, _ in model.phase_parameters(phase)}
        assert moved == wanted, (phase, moved ^ wanted)
        owners |= dict.fromkeys(wanted, phase)
    assert set(owners) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_overfits_one_batch(case: str) -> None:
    history = train(build(case), 150, lr=5e-3)
    assert history[-1]["mse"] < 0.15 * history[0]["mse"], (history[0]["mse"], history[-1]["mse"])


@pytest.mark.parametrize("case", CASES)
def test_parts_are_logged_and_add_up(case: str) -> None:
    parts = build(case).losses(Batch(images()), build(case).phases[0], Draws.whole(0, 0, ROWS))
    terms = [parts[k] for k in ("reconstruction", "commitment", "codebook", "adversarial") if k in parts]
    torch.testing.assert_close(torch.stack(terms).sum(), parts["loss"].detach())
    names = [f"_{h}x{w}" for h, w in build(case).layout.grids] if case.startswith("var") else [""]
    for name in names:
        assert 0 < float(parts[f"batch_use{name}"]) <= 1
        assert 1 <= float(parts[f"batch_perplexity{name}"]) <= 16
    assert all(v.ndim == 0 for v in parts.values())


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_change_nothing(case: str) -> None:
    """Means over rows add up, codebook statistics and the adaptive adversarial weight wait for the whole batch."""
    runs = [train(build(case).double(), 12, micro) for micro in (ROWS, 3)]
    for key in ("loss", "reconstruction"):
        torch.testing.assert_close([h[key] for h in runs[1]], [h[key] for h in runs[0]], atol=1e-9, rtol=1e-9)
    if "adversarial" in case:
        ratios = [[h["adversarial_ratio"] for h in r] for r in runs]
        assert ratios[0][-1] > 0
        torch.testing.assert_close(ratios[1], ratios[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_weights_other_seed_other_weights(case: str) -> None:
    states = []
    for seed in (0, 0, 1):
        model = build(case, seed)
        train(model, 3)
        states.append(model.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert any(not torch.equal(v, states[2][k]) for k, v in states[0].items())


@pytest.mark.parametrize("case", CASES)
def test_state_dict_holds_all_that_training_needs(case: str) -> None:
    """Three steps, or one, a new model from the state dict, and two more: the same weights (the optimizer without memory)."""

    def steps(model: Autoencoder, numbers: range) -> None:
        model.train()
        for step in numbers:
            for phase in model.phases:
                draws = Draws.whole(0, step, ROWS, 10, stream=phase)
                named = model.phase_parameters(phase)
                loss = model.losses(Batch(images(seed=step)), phase, draws)["loss"]
                for (_, parameter), gradient in zip(named, torch.autograd.grad(loss, [p for _, p in named])):
                    parameter.data -= 0.05 * gradient
            model.after_step(Draws.whole(0, step, ROWS, 10))

    straight, first, second = build(case), build(case), build(case, seed=7)
    steps(straight, range(3))
    steps(first, range(1))
    second.load_state_dict(first.state_dict(), strict=True)
    steps(second, range(1, 3))
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in straight.state_dict().items())


@pytest.mark.parametrize("case", ["vq", "var_vq"])
def test_tokens_go_both_ways(case: str) -> None:
    model = build(case).eval()
    tokens = model.encode(images())
    assert tokens.layout == model.layout
    assert tokens.data.dtype == torch.uint8
    assert tokens.data.shape == (ROWS, model.layout.length)
    with torch.no_grad():
        straight, _ = model(images())
    torch.testing.assert_close(model.decode(tokens), straight.clamp(-1, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(images()[:3]).ids, tokens.ids[:3])


def test_foreign_tokens_are_refused() -> None:
    model = build("var_vq").eval()
    tokens = model.encode(images())
    other = replace(model.layout, vocabulary=32)
    with pytest.raises(LayoutError, match="vocabulary: 16 here, 32 there"):
        model.decode(Tokens(tokens.data, other))
    with pytest.raises(LayoutError, match="codebook has 16 codes"):
        model.decode(Tokens(tokens.data + 200, model.layout))
    layout = replace(model.layout, grids=((3, 3),))  # of a multi-scale quantizer, some of its own scales would do
    with pytest.raises(LayoutError, match="grids"):
        model.decode(Tokens(torch.zeros(1, 9, dtype=torch.uint8), layout))
    with pytest.raises(LayoutError, match="grids"):
        build("vq").eval().decode(Tokens(torch.zeros(1, 9, dtype=torch.uint8), TokenLayout(grids=((3, 3),), vocabulary=16)))


@pytest.mark.parametrize("channels", [1, 3])
def test_preview_shows_originals_beside_reconstructions(channels: int) -> None:
    model = build("vq", channels=channels).eval()
    image = images(12, channels)
    picture = model.preview(Batch(image), Draws.whole(0, 0, 12))
    assert picture.shape == (channels, 2 * SIZE, 16 * SIZE)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    torch.testing.assert_close(picture[:, :SIZE, :SIZE], image[0] / 2 + 0.5)
    torch.testing.assert_close(picture[:, :SIZE, SIZE : 2 * SIZE], model.decode(model.encode(image))[0] / 2 + 0.5, atol=1e-5, rtol=1e-5)
    assert float(picture[:, SIZE:, 8 * SIZE :].abs().sum()) == 0


def test_grid_keeps_rows_and_columns() -> None:
    cells = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 3)
    assert grid(cells, 3)[0, ::2, ::3].tolist() == [[0, 1, 2], [3, 4, 0]]


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_geometry_gives_grid_and_image_back(patch: int) -> None:
    geometry = Geometry(channels=8, multipliers=(1, 2), patch=patch, encoder_blocks=1, decoder_blocks=2, attention=(1,), norm_groups=4)
    z = Encoder(geometry, 3, 5)(torch.randn(2, 3, 32, 32))
    assert z.shape == (2, 5, *geometry.grid((32, 32)))
    assert geometry.grid((32, 32)) == (16 // patch, 16 // patch)
    assert Decoder(geometry, 3, 5)(z).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("recipe", "args", "size", "words"),
    [
        ("vq", {}, 18, "size=18x18: not divisible by the downsampling 4"),
        ("var_vq", {"scales": [1, 2, 3]}, 16, r"scales=\[1, 2, 3\].*4x4"),
        ("var_vq", {"codes": 1}, 16, "codes=1"),
        ("vq", {"channels": 12}, 16, "norm_groups=8: does not divide the width 12"),
        ("vq", {"attention": [2]}, 16, r"attention=\[2\]: levels are 0 to 1"),
        ("vq", {"adversarial": -1.0}, 16, r"args\.adversarial=-1\.0: must be from 0"),
        ("vq", {"patch": 0}, 16, "patch=0"),
        ("vq", {"dim": 1}, 16, "dim=1"),
        ("vq", {"colours": 3}, 16, "args.colours"),
        ("vq", {"codes": "many"}, 16, "args.codes: 'many'"),
    ],
)
def test_impossible_values_name_the_field(recipe: str, args: dict[str, Any], size: int, words: str) -> None:
    spec = ModelSpec("tokenizer", recipe, {**registry.get(recipe).tiny, **args}, {}, {"signal": signals.image(size, 1).to_dict()})
    with pytest.raises(ConfigError, match=words):
        spec.build()


def test_codebook_and_vectors_are_free_of_weight_decay() -> None:
    model = build("vq_adversarial")
    free = {n for n, p in model.named_parameters() if model.no_decay(n, p)}
    assert "encoder.conv_in.0.bias" in free
    assert "decoder.conv_out.3.weight" not in free
    assert model.no_decay("quantizer.codebook.weight", torch.nn.Parameter(torch.zeros(2, 2)))


# --- losses -------------------------------------------------------------------------------------------------------


def test_adversarial_waits_for_its_start() -> None:
    model = build("vq_adversarial", adversarial_start=2)
    history = train(model, 4)
    assert [h["adversarial"] == 0 for h in history] == [True, True, False, False]
    assert [h["discriminator"] == 0 for h in history] == [True, True, False, False]
    assert history[0]["adversarial_ratio"] > 0


def test_adaptive_weight_is_the_ratio_of_gradients() -> None:
    """Equation 7 of arXiv:2012.09841, from the gradients of the step before."""
    torch.manual_seed(0)
    loss = Adversarial.Config(weight=0.5, discriminator=PatchDiscriminator.Config(channels=8, layers=1)).build(1, torch.Size((1, 4, 3, 3)))
    loss.train()
    last = torch.nn.Parameter(torch.randn(1, 4, 3, 3))
    image = torch.nn.functional.conv2d(torch.randn(2, 4, 10, 10), last)
    reconstruction = image.square().mean()
    assert float(loss.generator_loss(image, reconstruction, last, 0, 2, 2).detach()) == 0
    fake = -loss.discriminator(image).mean()
    expected = [torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (reconstruction, fake)]
    ratio = float(expected[0] / (expected[1] + 1e-4))
    assert loss.after_step()["adversarial_ratio"] == pytest.approx(ratio, rel=1e-5)
    following = loss.generator_loss(image, reconstruction, last, 1, 2, 2)
    assert float(following.detach()) == pytest.approx(0.5 * ratio * float(fake.detach()), rel=1e-5)


def test_hinge_loss_pulls_the_sides_apart() -> None:
    torch.manual_seed(0)
    loss = Adversarial.Config(discriminator=PatchDiscriminator.Config(channels=8, layers=2)).build(1, torch.Size((1,)))
    real, fake = torch.ones(8, 1, 16, 16), -torch.ones(8, 1, 16, 16)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        found = loss.discriminator_loss(real, fake, 0)
        found.backward()
        optimizer.step()
    assert float(found.detach()) < 0.05
    with torch.no_grad():
        assert float(loss.discriminator(real).mean()) > 0.9
        assert float(loss.discriminator(fake).mean()) < -0.9


def perceptual_file(folder: Path) -> Path:
    """Random weights under the names of LPIPS-VGG."""
    draw, state, channels = torch.Generator().manual_seed(0), {}, 3
    for s, (indices, width) in enumerate(zip(Perceptual.SLICES, (64, 128, 256, 512, 512))):
        for i in indices:
            state[f"net.slice{s + 1}.{i}.weight"] = torch.randn(width, channels, 3, 3, generator=draw) * (2 / (9 * channels)) ** 0.5
            state[f"net.slice{s + 1}.{i}.bias"] = torch.zeros(width)
            channels = width
        state[f"lin{s}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=draw)
    save_file(state, str(folder / "lpips.safetensors"))
    return folder / "lpips.safetensors"


def test_perceptual_loss_measures_and_is_not_saved(tmp_path: Path) -> None:
    path = perceptual_file(tmp_path)
    network = Perceptual.Config(weights=str(path)).build()
    assert list(network.parameters()) == []
    image = images(2)
    near, far = (float(network(image, (image + e * torch.randn_like(image)).clamp(-1, 1))) for e in (0.05, 0.5))
    assert float(network(image, image)) == 0
    assert 0 < near < far
    model = build("vq", perceptual=str(path)).train()
    parts = model.losses(Batch(images(2)), "main", Draws.whole(0, 0, 2))
    assert float(parts["perceptual"]) > 0
    assert set(model.state_dict()) == set(build("vq").state_dict())


def test_perceptual_weights_that_are_not_there_or_not_theirs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Perceptual.Config(weights=str(tmp_path / "none.safetensors")).build()
    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match="not LPIPS-VGG weights"):
        Perceptual.Config(weights=str(tmp_path / "other.safetensors")).build()

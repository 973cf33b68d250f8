"""Discriminators and perceptual networks as published: sizes, fields of view, losses with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.parts.adversarial.augment import DiffAug
from tokenloom.models.parts.adversarial.base import Discriminator
from tokenloom.models.parts.adversarial.loss import R1, Adversarial, LeCam
from tokenloom.models.parts.adversarial.patch import Blurring, PatchDiscriminator, PatchGAN, parameters
from tokenloom.models.parts.adversarial.projected import Projected
from tokenloom.models.parts.adversarial.stylegan import StyleGAN
from tokenloom.models.parts.losses import Perceptual
from tokenloom.models.parts.nets.convnext import ConvNeXt
from tokenloom.models.parts.nets.dino import Dino
from tokenloom.models.tokenizers.autoencoder import Autoencoder

DINO = Dino(weights="none", patch=16, grid_trained=14, branches="plain", side=224)


@pytest.mark.parametrize(
    ("discriminator", "expected"),
    [
        (PatchGAN.Config(layers=2), 663_361),
        (PatchGAN.Config(), 2_765_633),
        (PatchGAN.Config(layers=4), 6_960_961),
        (Blurring.Config(), 1_909_889),
        (Blurring.Config(stages=4), 7_431_297),
        (StyleGAN.Config(side=256), 36_500_225),
        (StyleGAN.Config(side=512), 36_593_793),
        (Projected.Config(trunk=DINO), 7_386_245),
    ],
    ids=lambda value: type(value).__qualname__.split(".")[0] if isinstance(value, Discriminator) else "",
)
def test_published_parameters(discriminator: Discriminator, expected: int) -> None:
    assert parameters(discriminator) == expected


@pytest.mark.parametrize(("layers", "pixels"), [(2, 34), (3, 70)])
def test_a_logit_of_patchgan_sees_as_many_pixels_as_published(layers: int, pixels: int) -> None:
    config = PatchGAN.Config(channels=4, layers=layers, norm="batch")
    torch.manual_seed(0)
    net = config.build(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = net(image)
    (gradient,) = torch.autograd.grad(logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2], image)
    rows = gradient[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == pixels == config.receptive_field


class _Given(nn.Module):
    """Logits that are the images' means, scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.scale * x_BCHW.mean((1, 2, 3), keepdim=True)


def judged(**fields: object) -> Adversarial:
    loss = Adversarial.Config(balance="constant", **fields).build(1, torch.Size((1,))).train()  # type: ignore[arg-type]
    loss.discriminator = _Given()
    return loss


def test_losses_of_both_sides() -> None:
    real, fake = torch.full((2, 1, 4, 4), 0.25), torch.full((2, 1, 4, 4), 0.1)  # logits 0.5 and 0.2
    assert float(judged().discriminator_loss(real, fake, 0)) == pytest.approx(0.5 * (0.5 + 1.2))
    vanilla = judged(loss="vanilla").discriminator_loss(real, fake, 0)
    assert float(vanilla) == pytest.approx(0.5 * float(F.softplus(torch.tensor(-0.5)) + F.softplus(torch.tensor(0.2))))
    zero = torch.zeros(())
    assert float(judged(weight=1.0).generator_loss(fake, zero, zero, 0, 2, 2)) == pytest.approx(-0.2)
    non_saturating = judged(weight=1.0, generator="non_saturating").generator_loss(fake, zero, zero, 0, 2, 2)
    assert float(non_saturating) == pytest.approx(float(F.softplus(torch.tensor(-0.2))))


def test_r1_is_the_squared_gradient_on_real_images_every_so_often() -> None:
    real, fake = torch.full((2, 1, 4, 4), 0.25), torch.full((2, 1, 4, 4), 0.1)
    loss = judged(r1=R1(gamma=3.0, every=4))
    plain = float(loss.discriminator_loss(real, fake, 1))
    squared = 16 * (2.0 / 16) ** 2  # each of 16 values moves the logit by scale / 16
    punished = loss.discriminator_loss(real, fake, 4)
    assert float(punished) == pytest.approx(plain + 4 * 1.5 * squared)
    punished.backward()
    assert loss.discriminator.scale.grad is not None


def test_lecam_pulls_logits_to_averages_of_the_other_side() -> None:
    real, fake = torch.full((2, 1, 4, 4), 0.25), torch.full((2, 1, 4, 4), 0.1)
    loss, plain = judged(lecam=LeCam(weight=0.5, decay=0.9)), 0.5 * (0.5 + 1.2)
    assert float(loss.discriminator_loss(real, fake, 0)) == pytest.approx(plain + 0.5 * 0.25)  # averages are zero, only 0.5 is above
    loss.after_step()
    torch.testing.assert_close(loss.averages, torch.tensor([0.05, 0.02]))
    apart = (0.5 - 0.02) ** 2 + 0.0
    assert float(loss.discriminator_loss(real, fake, 1)) == pytest.approx(plain + 0.5 * apart)


def test_augmentation_is_a_rows_own_and_passes_gradients() -> None:
    image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = DiffAug()(image, Draws(0, 0, 1, 0, 4, 4))
    part = DiffAug()(image[2:], Draws(0, 0, 1, 2, 4, 4))
    torch.testing.assert_close(part, whole[2:])
    assert not torch.equal(whole[0], image[0])
    (gradient,) = torch.autograd.grad(whole.square().sum(), image)
    assert bool(gradient.flatten(1).any(1).all())
    moved = DiffAug(translation=0.5, cutout=0.0)._shifted(image, torch.tensor([[0.0, 0.99]] * 4))
    torch.testing.assert_close(moved[:, :, 8:, :8], image[:, :, :8, 8:])
    assert not bool(moved[:, :, :8].any())
    holed = DiffAug(cutout=0.25)._holed(torch.ones(1, 1, 16, 16), torch.tensor([[0.5, 0.5]]))
    assert int((holed == 0).sum()) == 16


def lpips_file(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """A state dict of random weights with the published names."""
    generator, state, channels = torch.Generator().manual_seed(0), {}, 3
    for s, (indices, width) in enumerate(zip(Perceptual.SLICES, (64, 128, 256, 512, 512))):
        for i in indices:
            state[f"net.slice{s + 1}.{i}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
            state[f"net.slice{s + 1}.{i}.bias"] = torch.randn(width, generator=generator) * 0.1
            channels = width
        state[f"lin{s}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    save_file(state, str(folder / "lpips.safetensors"))
    return str(folder / "lpips.safetensors"), state


def test_lpips_is_its_published_definition(tmp_path: Path) -> None:
    """arXiv:1801.03924, equation 1, layer by layer, with torch's own modules."""
    path, state = lpips_file(tmp_path)
    features = nn.Sequential()  # VGG-16's up to relu5_3
    for s, indices in enumerate(Perceptual.SLICES):
        if s:
            features.append(nn.MaxPool2d(2, 2))
        for i in indices:
            weight = state[f"net.slice{s + 1}.{i}.weight"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": state[f"net.slice{s + 1}.{i}.bias"]})
            assert len(features) == i
            features.extend([conv, nn.ReLU()])
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, std = torch.tensor([-0.03, -0.088, -0.188])[:, None, None], torch.tensor([0.458, 0.448, 0.45])[:, None, None]
    total, (a, b) = torch.zeros(2), [(x - mean) / std for x in images]
    with torch.no_grad():
        for index, module in enumerate(features):
            a, b = module(a), module(b)
            if index in (3, 8, 15, 22, 29):
                unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b)]
                head = state[f"lin{(3, 8, 15, 22, 29).index(index)}.model.1.weight"]
                total += ((unit[0] - unit[1]).square() * head[0]).sum(1).mean((1, 2))
        found = Perceptual.Config(weights=path).build()(*images)
    torch.testing.assert_close(found, total.mean())


def test_a_patch_without_features_has_a_finite_gradient(tmp_path: Path) -> None:
    path, state = lpips_file(tmp_path)
    save_file({k: -v.abs() if k.endswith("bias") else v * 0 for k, v in state.items()}, path)
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(Perceptual.Config(weights=path).build()(image, torch.ones(1, 3, 16, 16)), image)
    assert bool(gradient.isfinite().all())


def test_convnext_has_the_published_size_and_says_what_is_missing(tmp_path: Path) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ConvNeXt().parameters()) == 50_223_688
    small = ConvNeXt(depths=(1, 1), widths=(8, 16), classes=5)
    assert small(torch.zeros(1, 1, 20, 20)).shape == (1, 5)
    save_file({"features.0.0.weight": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match=r"perceptual.convnext=.*not the weights of ConvNeXt-S"):
        ConvNeXt.of_file(str(tmp_path / "other.safetensors"), "perceptual.convnext")


def tokenizer(recipe: str, **args: object) -> Autoencoder:
    torch.manual_seed(0)
    given = {"signal": signals.image(16, 1).to_dict()}
    model = ModelSpec("tokenizer", recipe, {"channels": 8, "multipliers": [1, 1], "patch": 4, "dim": 4} | args, {}, given).build()
    assert isinstance(model, Autoencoder)
    return model


def test_the_divergence_is_as_strong_as_beside_a_sum_over_the_image() -> None:
    """Published: sum of errors plus kl times the divergence; here both over the number of values."""
    model, image = tokenizer("kl", divergence=0.5).train(), torch.rand(2, 1, 16, 16)
    parts = model.losses(Batch(image), "autoencoder", Draws.whole(0, 0, 2))
    mean, logvar = model.quantizer.posterior(model.latents(image))
    torch.testing.assert_close(parts["kl"], 0.5 * model.quantizer.divergence(mean, logvar).mean() / 256)


def test_the_discriminator_sees_what_the_decoder_is_trained_on() -> None:
    """Samples of the posterior, not its mean."""
    model, image, seen = tokenizer("kl", adversarial=0.5).train(), torch.rand(2, 1, 16, 16), []
    judge = model.adversarial.discriminator
    judge.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    for step in range(2):
        model.losses(Batch(image), "discriminator", Draws.whole(0, step, 2))
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[1], seen[3], atol=1e-4), "the same image, other noise"
    with torch.no_grad():
        assert not torch.allclose(seen[1], model.pixels(model.quantizer(model.latents(image)).z), atol=1e-4)


def test_stylegan_is_made_for_one_size() -> None:
    net = StyleGAN.Config(side=16, width=8).build(1)
    assert net(torch.zeros(2, 1, 16, 16)).shape == (2, 1)
    with pytest.raises(ConfigError, match="the images are 8x8"):
        net(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ConfigError, match="side=24"):
        StyleGAN.Config(side=24)


def test_heads_on_dino_judge_every_slot(tmp_path: Path) -> None:
    trunk = Dino(weights=str(tmp_path / "dino.safetensors"), width=32, depth=2, heads=2, patch=4, grid_trained=2, branches="plain", side=8)
    save_file({k: torch.randn(v.shape) * 0.1 for k, v in trunk.build(3, 32).state_dict().items()}, trunk.weights)
    net = Projected.Config(trunk=trunk, after=(0, 2), kernel=3, norm="group").build(1)
    image = torch.rand(2, 1, 8, 8, requires_grad=True)
    logits = net(image)
    assert logits.shape == (2, 2 * 5)
    assert bool(torch.autograd.grad(logits.sum(), image)[0].any())
    assert not any(name.startswith("_trunk") for name, _ in net.named_parameters())
    with pytest.raises(ConfigError, match=r"after=\[3\]"):
        Projected.Config(trunk=trunk, after=(3,))


def test_the_small_discriminator_keeps_its_form() -> None:
    assert parameters(PatchDiscriminator.Config(channels=8), 1) == 10_761

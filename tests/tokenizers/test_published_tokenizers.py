"""What some tokenizers are made of as published: nets, judges and losses, held to numbers and definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.registry import get
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.adversarial.stylegan import StyleGAN2, spread
from tokenloom.models.parts.losses import LogitLaplace
from tokenloom.models.parts.mlp import Tanh
from tokenloom.models.parts.nets.bare_vit import rows_and_columns
from tokenloom.models.parts.nets.magvit import AdaptiveNorm, depth_to_space
from tokenloom.models.parts.nets.queries import Queries
from tokenloom.models.parts.quantizers.gradients import Rotation
from tokenloom.models.tokenizers.factorised import Factorised
from tokenloom.models.zoo.tokenizers.gigatok.net import Hybrid, pooled
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Residual

IMAGE = SignalSpec(shape=(16, 16), channels=3)
TINY = {"net": "vit", "bits": 6, "width": 32, "depth": 1, "heads": 2, "patch": 4}


def test_logit_laplace_is_its_published_definition() -> None:
    """DALL-E, equations 2 and 3: the density itself, integrated numerically, has the same gradient and differs by its constants."""
    made, target = (torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1 for _ in range(2))
    loss = LogitLaplace(weight=1.0, scale=0.7)

    def squeezed(x: torch.Tensor) -> torch.Tensor:
        return 0.8 * (x + 1) / 2 + 0.1

    x, mu = squeezed(target), torch.log(squeezed(made) / (1 - squeezed(made)))
    density = torch.exp(-(torch.log(x / (1 - x)) - mu).abs() / 0.7) / (2 * 0.7 * x * (1 - x))
    constants = (math.log(2 * 0.7) + torch.log(x * (1 - x))).mean()
    torch.testing.assert_close(loss(made, target) + constants, -density.log().mean())
    out = torch.full((1, 3, 2, 2), 5.0)
    assert loss(out, -out).isfinite()
    with pytest.raises(ConfigError, match=r"logit_laplace\.eps=0\.5"):
        LogitLaplace(eps=0.5)


def test_vit_vqgan_trains_on_all_its_losses() -> None:
    losses = {"adversarial": 0.1, "balance": "constant", "judge": "stylegan", "judge_side": 16, "verdict": "vanilla"}
    losses |= {"deceit": "non_saturating", "r1": 10.0, "laplace": 0.1}
    config = get("vit_vq").config({"codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2, **losses})
    assert isinstance(config.adversarial.discriminator, StyleGAN2.Config)  # type: ignore[attr-defined]
    small = {"adversarial.discriminator": {"stylegan2_discriminator": {"side": 16, "width": 8}}}
    model = (
        get("vit_vq").config({"codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2, **losses}, small).build(signal=IMAGE)
    )
    batch, draws = Batch(signal=torch.rand(4, 3, 16, 16) * 2 - 1), Draws(0, 0, 10, 0, 4, 4)
    for phase in model.phases:
        found = model.losses(batch, phase, draws)
        assert found["loss"].isfinite()
        assert phase == "discriminator" or found["logit_laplace"] > 0


def test_the_released_vit_vqgan_has_tanh_in_its_blocks_and_fixed_positions() -> None:
    args = {"codes": 16, "dim": 4, "patch": 4, "width": 32, "depth": 1, "heads": 2, "form": "released", "decoder": [64, 1, 2]}
    model = get("vit_vq").config(args).build(signal=IMAGE)
    assert isinstance(model.encoder.trunk.stack.blocks[0].mlp, Tanh)
    assert model.encoder.trunk.stack.blocks[0].attention.qkv.bias is None
    assert not model.encoder.trunk.position.requires_grad
    table = rows_and_columns((3, 4), 8)
    assert table.shape == (12, 8)
    torch.testing.assert_close(table[0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    torch.testing.assert_close(table[7, :2], torch.sin(torch.tensor([3.0, 0.03])))  # row 1, column 3
    assert isinstance(model.decoder.pixels, nn.ConvTranspose2d)
    x = torch.rand(1, 3, 16, 16)
    assert model.decode(model.encode(x)).shape == x.shape
    mlp = Tanh(Tanh.Config(ratio=2.0), 4)
    torch.testing.assert_close(mlp(x[..., :4]), mlp.out(torch.tanh(mlp.up(x[..., :4]))))


def test_bsq_has_the_papers_transformer() -> None:
    model = get("bsq").config(TINY).build(signal=IMAGE)
    assert model.layout.grids == ((4, 4),)
    assert model.encoder.patches.bias is None
    x = torch.rand(2, 3, 16, 16)
    moved = x.clone()
    moved[:, :, 12:, 12:] = 0  # attention carries one corner to the other, as no small convolution does
    assert not torch.allclose(model.encoder(x)[..., 0, 0], model.encoder(moved)[..., 0, 0])
    trunk = model.encoder.trunk
    patches = model.encoder.patches(x).flatten(2).transpose(1, 2)
    expected = trunk.norm(trunk.stack(trunk.norm_pre(patches + trunk.position)))
    torch.testing.assert_close(model.encoder(x).flatten(2).transpose(1, 2), expected)
    with pytest.raises(ConfigError, match=r"latent=16: vectors of 32 channels pass as they are"):
        get("bsq").config(TINY, {"latent": 16}).build(signal=IMAGE)


def test_stylegan2_has_the_published_size_and_definition() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in StyleGAN2.Config(side=256).build(3).parameters()) == 28_864_129
        assert sum(p.numel() for p in StyleGAN2.Config(side=128).build(3).parameters()) == 28_389_121
    torch.manual_seed(0)
    judge = StyleGAN2.Config(side=16, width=8).build(3).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    h = judge.conv_in(x)
    torch.testing.assert_close(h, F.conv2d(x, judge.conv_in.weight / 3**0.5, judge.conv_in.bias))
    block = judge.blocks[0]
    h = math.sqrt(2) * F.leaky_relu(h, 0.2)
    kernel = torch.outer(*[torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8] * 2).expand(8, 1, 4, 4)
    first = math.sqrt(2) * F.leaky_relu(F.conv2d(h, block.conv1.weight / 72**0.5, block.conv1.bias, padding=1), 0.2)
    second = F.conv2d(F.conv2d(F.pad(first, (2,) * 4), kernel, groups=8), block.conv2.weight / 72**0.5, block.conv2.bias, stride=2)
    beside = F.conv2d(F.conv2d(F.pad(h, (1,) * 4), kernel, groups=8), block.beside.weight / 8**0.5, stride=2)
    torch.testing.assert_close(block(h), (math.sqrt(2) * F.leaky_relu(second, 0.2) + beside) / math.sqrt(2))
    assert judge(x).shape == (4, 1)
    assert float(spread(torch.ones(4, 2, 4, 4)).max()) < 1e-3  # rows that agree
    torch.testing.assert_close(spread(torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1, 1)).flatten(), torch.ones(4))


def test_rq_vae_shares_its_book_and_drops_stages() -> None:
    args = {"channels": 8, "multipliers": [1, 1], "patch": 4, "codes": 8, "dim": 4, "stages": 3}
    shared = get("rvq").config(args).quantizer  # type: ignore[attr-defined]
    assert isinstance(shared, Residual.Config)
    assert shared.books == "shared"
    assert [name for name, _ in shared.build((2, 2)).named_buffers() if name.endswith("codebook.weight")] == ["stages.0.codebook.weight"]
    assert get("rvq").config({**args, "books": "separate"}).quantizer.books == "separate"  # type: ignore[attr-defined]
    dropped = get("rvq").config({**args, "kept": 2}).quantizer.build((2, 2)).train()  # type: ignore[attr-defined]
    kept = {dropped.kept(Draws(0, step, 100, 0, 1, 1)) for step in range(40)}
    assert kept == {2, 3}
    assert dropped.eval().kept(Draws(0, 0, 100, 0, 1, 1)) == 3
    with pytest.raises(ConfigError, match=r"kept=4: there are 3 stages"):
        get("rvq").config({**args, "kept": 4})


def test_unitoks_attention_factorisation_has_the_published_size_and_is_causal() -> None:
    count = [sum(p.numel() for p in Factorised.Config().build(*sides).parameters()) for sides in ((1024, 64), (64, 1024))]
    assert count == [3_246_784, 7_615_744]
    torch.manual_seed(0)
    for sides in ((8, 4), (4, 8), (6, 4)):
        module = Factorised.Config().build(*sides).double()
        x = torch.randn(2, sides[0], 2, 3, dtype=torch.float64)
        other = x.clone()
        other[..., 1, 1] += torch.randn(sides[0], dtype=torch.float64)
        changed = (module(x) - module(other)).abs().amax((0, 1)).flatten() > 1e-9
        assert changed.tolist() == [False] * 4 + [True] * 2
    shrinking = Factorised.Config().build(8, 4)
    x = torch.randn(1, 5, 8)
    q, k, v = shrinking.qkv(x).chunk(3, -1)
    heads = [F.scaled_dot_product_attention(*(t[..., 4 * h : 4 * h + 4] for t in (q, k, v)), is_causal=True) for h in (0, 1)]
    torch.testing.assert_close(shrinking.attend(x), shrinking.attended((heads[0] + heads[1]) / 2))
    model = get("pq").config({"channels": 8, "multipliers": [1, 2], "patch": 2, "codes": 8, "dim": 2}).build(signal=IMAGE)
    assert isinstance(model.quant_conv, Factorised)
    assert isinstance(get("pq").config({"between": "convolution"}).build(signal=IMAGE).quant_conv, nn.Conv2d)


def test_open_magvit2s_decoder_is_told_the_latents_mean_and_spread() -> None:
    torch.manual_seed(0)
    norm = AdaptiveNorm(3, 8, 4)
    x, z = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 2, 2)
    spread, mean = z.flatten(2).std(-1), z.flatten(2).mean(-1)
    expected = norm.gamma(spread)[..., None, None] * F.group_norm(x, 4, eps=1e-6) + norm.beta(mean)[..., None, None]
    torch.testing.assert_close(norm(x, z), expected, atol=1e-4, rtol=1e-4)
    cell = torch.arange(8.0).view(1, 8, 1, 1)  # two channels of each of four places
    torch.testing.assert_close(depth_to_space(cell)[0, 0], torch.tensor([[0.0, 2], [4, 6]]))
    args = {"net": "magvit", "bits": 4, "channels": 8, "multipliers": [1, 2], "norm_groups": 4}
    model = get("lfq").config(args).build(signal=IMAGE)
    assert model.layout.grids == ((8, 8),)
    image = torch.rand(2, 3, 16, 16)
    assert model.decode(model.encode(image)).shape == image.shape
    assert any(isinstance(part, AdaptiveNorm) for part in model.decoder.modules())
    simvq = get("simvq").config({**{k: v for k, v in args.items() if k != "bits"}, "codes": 8, "dim": 4}).build(signal=IMAGE)
    assert not any(isinstance(part, AdaptiveNorm) for part in simvq.decoder.modules())
    assert simvq.quantizer.codebook.bias is not None
    assert get("simvq").config().quantizer.map == "linear"  # type: ignore[attr-defined]


def test_gigatok_has_convolutions_around_a_q_former() -> None:
    torch.manual_seed(0)
    args = dict(get("gigatok").tiny)
    config = get("gigatok").config(args)
    assert isinstance(config.net, Hybrid)  # type: ignore[attr-defined]
    assert isinstance(config.quantizer.gradient, Rotation)  # type: ignore[attr-defined]
    assert isinstance(get("gigatok").config({**args, "net": "transformers"}).net, Queries)  # type: ignore[attr-defined]
    model = get("gigatok").config({**args, "semantic": 0.0}).build(signal=IMAGE)
    x = torch.rand(2, 3, 16, 16)
    assert model.encoder.convolutions(x).shape == (2, 16, 4, 4)
    before = model.encoder(x)
    assert before.shape == (2, 4, 1, 6)
    with torch.no_grad():
        for block in model.encoder.stack.blocks:
            block.cross.proj.weight.zero_()  # without its look at the map a query knows its own average and those of the others
        started: list[torch.Tensor] = []
        hook = model.encoder.stack.register_forward_pre_hook(lambda _, given: started.append(given[0]))
        plain, other = model.encoder(x), model.encoder(1 - x)
        hook.remove()
        torch.testing.assert_close(started[0], pooled(model.encoder.convolutions(x), 6) + model.encoder.queries)
        assert (plain - other).abs().max() > 1e-4, "queries start from the image"
    level = torch.randn(1, 5, 4, 4)
    found = pooled(level, 8)
    torch.testing.assert_close(found[0, 0], level.mean((2, 3))[0])
    torch.testing.assert_close(found[0, 4], level[0, :, 2:, 2:].mean((1, 2)))
    torch.testing.assert_close(found[0, 5:], level[0, :, 0, :3].t())
    assert pooled(level, 3).shape == (1, 3, 5)
    with pytest.raises(ConfigError, match=r"net\.patch=8: the convolutions' grid is \(4, 4\), not \(2, 2\)"):
        get("gigatok").config({**args, "semantic": 0.0}, {"net.patch": 8}).build(signal=IMAGE)


def test_the_entropy_of_the_mean_has_a_weight_of_its_own() -> None:
    z = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    losses = {}
    for diversity in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        config = get("gigatok").config({**get("gigatok").tiny, "diversity": diversity}).quantizer  # type: ignore[attr-defined]
        losses[diversity] = float(config.build((2, 2))(z).losses["entropy"].detach())
    assert losses[0.0] > losses[1.0]
    assert math.isclose(losses[3.0] - losses[0.0], 3 * (losses[1.0] - losses[0.0]), rel_tol=1e-4)

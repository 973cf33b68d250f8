"""Laws of the tokenizers beyond plain VQ: any size (FlexVAR), bands (NFIG), columns, levels of each channel, clusters of features."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models import registry
from models.autoencoder import Autoencoder
from models.build import ModelSpec
from models.config import ConfigError
from models.draws import Draws
from models.generator import GroupGenerator
from models.parts.nets.classifier import Classifier, Protocol, shape_of
from models.parts.nets.columns import Columns
from models.parts.nets.dino import Dino
from models.parts.nets.frozen import Classified, Frozen
from models.parts.quantizers.clusters import Clusters
from models.parts.quantizers.codebook import EMA, Codebook, Learned, Revival
from models.parts.quantizers.dimensionwise import Dimensionwise, normal_levels
from models.parts.quantizers.flexible import Flexible
from models.parts.quantizers.frequency import Frequency, low_pass
from models.parts.quantizers.kmeans import KMeans
from models.parts.quantizers.multiscale import MultiScale
from models.protocols import Batch, Labels, LayoutError
from models.zoo.tokenizers._small import Small
from tasks.parallel import launch

SIZE, ROWS, DIM = 16, 8, 6
SHAPE = shape_of(1, 3, Protocol(width=4, features=8))


def build(name: str, seed: int = 0, **more: Any) -> Autoencoder:
    given = {"size": SIZE, "channels": 1} | ({"features": SHAPE} if name == "digit" else {})
    torch.manual_seed(seed)
    model = ModelSpec("tokenizer", name, {**registry.get(name).tiny, **more}, {}, given).build()
    assert isinstance(model, Autoencoder)
    return model


def images(rows: int = ROWS, seed: int = 0, width: int = SIZE) -> Tensor:
    """Smooth blobs in [-1, 1]."""
    coarse = torch.rand(rows, 1, 4, width // 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (SIZE, width), mode="bilinear")


def train(model: Autoencoder, steps: int, lr: float = 5e-3) -> Autoencoder:
    """A short training on fresh batches."""
    model.train()
    optimizer = torch.optim.AdamW([p for _, p in model.phase_parameters("main")], lr=lr, weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        model.losses(Batch(images(32, step)), "main", Draws.whole(0, step, 32, steps))["loss"].backward()
        optimizer.step()
        model.after_step(Draws.whole(0, step, 32, steps))
    return model.eval()


def latents(seed: int = 0, size: int = 4, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, DIM, size, size, generator=torch.Generator().manual_seed(seed))


# --- FlexVAR ------------------------------------------------------------------------------------------------------


def flexible(update: EMA | Learned = EMA(), metric: Any = "cosine", **more: Any) -> Flexible:  # noqa: B008 - frozen
    torch.manual_seed(0)
    book = Codebook.Config(codes=32, dim=DIM, metric=metric, update=update)
    return Flexible.Config(codebook=book, **{"scales": (1, 2, 4), **more}).build((4, 4)).eval()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_codes_of_sizes_that_were_never_trained_on(metric: str) -> None:
    """Each grid is coded by itself: what a scale says does not depend on the others, and its vectors are their own codes."""
    quantizer, z = flexible(metric=metric, trained=(2,)), latents()
    quantizer.codebook.weight.data.normal_()
    scales = (1, 3, 5, (2, 3), 7)
    ids = quantizer.encode(z, scales)
    assert ids.shape == (ROWS, 1 + 9 + 25 + 6 + 49)
    for grid, part in zip(scales, quantizer.split(ids, scales)):
        assert torch.equal(part, quantizer.encode(z, [grid]))
        vectors = quantizer.lookup(part, [grid])
        assert vectors.shape == (ROWS, DIM, *(grid if isinstance(grid, tuple) else (grid, grid)))
        assert torch.equal(quantizer.encode(vectors, [grid]), part)
    assert torch.equal(quantizer.lookup(ids, scales), quantizer.lookup(quantizer.encode(z, [7]), [7]))
    with torch.no_grad():
        assert torch.equal(quantizer.encode(z), quantizer(z).ids)
        torch.testing.assert_close(quantizer(z).z, quantizer.lookup(quantizer.encode(z)))


def test_inputs_of_a_scale_are_the_codes_of_the_one_before() -> None:
    quantizer, scales = flexible(), (1, 2, 3, 5)
    ids = quantizer.encode(latents(), scales)
    taught, parts = quantizer.next_inputs(ids, scales), quantizer.split(ids, scales)
    assert taught.shape == (ROWS, 4 + 9 + 25, DIM)
    state, inputs = quantizer.start(ROWS), []
    for scale, part in enumerate(parts):
        state, following = quantizer.accumulate(state, scale, part, scales)
        inputs.append(following)
    torch.testing.assert_close(torch.cat(inputs[:-1], 1), taught)
    torch.testing.assert_close(state, quantizer.lookup(ids, scales))
    torch.testing.assert_close(inputs[-1], state.flatten(2).transpose(1, 2))
    other = parts[0] + 1, *parts[1:]
    changed = quantizer.next_inputs(torch.cat(other, 1) % 32, scales)
    assert torch.equal(changed[:, 4:], taught[:, 4:]), "only the next scale sees the first one"
    assert not torch.equal(changed[:, :4], taught[:, :4])


def test_flexvar_quantizer_equals_the_official_one() -> None:
    """Ids of latents resized to four scales, and the inputs made from them (upstream FlexVAR, fixture flexvar)."""
    path = Path(__file__).parent / "fixtures/parity/flexvar.safetensors"
    if not path.exists():
        pytest.skip("the fixture belongs to the generator's family and is not here")
    found = load_file(path)
    table = found["state_vae/quantize.embedding.weight"]
    book = Codebook.Config(codes=table.shape[0], dim=table.shape[1], metric="cosine")
    quantizer = Flexible.Config(codebook=book, scales=(1, 2, 4, 5)).build((5, 5)).eval()
    quantizer.codebook.weight.data.copy_(table)
    ids = quantizer.encode(found["in/latent"])
    assert torch.equal(ids, found["out/gt_idx_BL"])
    torch.testing.assert_close(quantizer.next_inputs(ids), found["out/x_BLCv_wo_first_l"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("update", [EMA(), Learned()])
def test_a_step_draws_one_size_for_the_whole_batch(update: EMA | Learned) -> None:
    quantizer, z = flexible(update, trained=(1, 3)).train(), latents()
    sizes = []
    for step in range(12):
        parts = [quantizer(z[first:last], Draws(0, step, 12, first, last, ROWS)) for first, last in ((0, 3), (3, 8))]
        assert parts[0].views["drawn"].shape[2:] == parts[1].views["drawn"].shape[2:]
        sizes.append(parts[0].views["drawn"].shape[2])
        assert parts[0].z.shape[2:] == (4, 4)
    assert set(sizes) == {1, 3}
    assert not quantizer.eval()(z).views


def test_flexvar_decodes_images_of_sizes_never_trained_on() -> None:
    """A larger image on its own grids, with the weights of a model of smaller ones."""
    model = train(build("flexvar_vq", codes=64), 80)
    large = F.interpolate(images(4, 999), 24, mode="bilinear")
    config = cast(Flexible.Config, model.config.quantizer)
    wide = model.on((6, 6), replace(config, scales=(1, 3, 6)))
    tokens = wide.encode(large)
    assert tokens.data.shape == (4, 1 + 9 + 36)
    error = float((wide.decode(tokens) - large).square().mean())
    assert error < 0.5 * float(large.square().mean()), (error, float(large.square().mean()))
    assert model.encode(images(2)).data.shape == (2, 1 + 4 + 16), "the model itself is as before"
    with pytest.raises(LayoutError):
        model.decode(tokens)
    with pytest.raises(ConfigError, match="last scale"):
        model.on((6, 6))


# --- NFIG ---------------------------------------------------------------------------------------------------------


def spectrum(z_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each frequency from zero as a share of the highest, and the energy there."""
    f = torch.fft.fft2(z_BCHW.double())
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in z_BCHW.shape[2:])
    return (y[:, None].square() + x.square()).sqrt() / 0.5**0.5, f.abs().square().sum((0, 1))


@pytest.mark.parametrize("size", [4, 5, 8])
def test_low_pass_is_an_orthogonal_projection(size: int) -> None:
    z, other = latents(0, size), latents(1, size)
    for share in (0.25, 0.5, 0.75):
        low = low_pass(z, share)
        torch.testing.assert_close(low_pass(low, share), low)
        torch.testing.assert_close((low * other).sum(), (z * low_pass(other, share)).sum(), atol=1e-3, rtol=1e-4)
        distance, energy = spectrum(low)
        assert float(energy[distance > share + 1e-6].sum()) < 1e-9 * float(energy.sum())
        whole = spectrum(z)[1]
        torch.testing.assert_close(energy[distance <= share], whole[distance <= share], rtol=1e-4, atol=1e-6)
    assert torch.equal(low_pass(z, 1.0), z)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_bands_lie_below_their_cutoffs(ratio: float) -> None:
    book = Codebook.Config(codes=32, dim=DIM, update=EMA())
    torch.manual_seed(0)
    quantizer = Frequency.Config(codebook=book, scales=(1, 2, 3, 5), ratio=ratio).build((5, 5)).eval()
    quantizer.codebook.weight.data.normal_()
    with torch.no_grad():
        bands = quantizer.bands(quantizer.encode(latents(0, 5)))
    reached = []
    for scale, band in enumerate(bands):
        distance, energy = spectrum(band)
        assert float(energy[distance > quantizer.cutoff(scale) + 1e-6].sum()) < 1e-9 * float(energy.sum())
        reached.append(float(distance[energy > 1e-6 * energy.max()].max()))
    assert reached == sorted(set(reached)), "each band reaches further than the one before"
    assert reached[0] == 0


def test_each_band_lowers_the_error_of_a_trained_model() -> None:
    model = train(build("nfig", codes=64), 120)
    z = model.latents(images(64, 999)).detach()
    quantizer = cast(Frequency, model.quantizer)
    error = quantizer(z).stats["residual"]
    assert bool((error.diff() < 0).all()), error
    assert float(error[-1]) < 0.25 * float(z.square().mean()), (error, z.square().mean())
    kept = torch.stack([low_pass(z, quantizer.cutoff(s)).square().mean() for s in range(3)])
    assert bool((error > 0.99 * (z.square().mean() - kept)).all()), "no band holds more than its frequencies"


def test_band_inputs_equal_incremental_inputs() -> None:
    torch.manual_seed(0)
    quantizer = Frequency.Config(codebook=Codebook.Config(codes=32, dim=DIM), scales=(1, 2, 4)).build((4, 4))
    quantizer.codebook.weight.data.normal_()
    ids = torch.randint(32, (3, 21))
    f_hat, inputs = quantizer.start(3), []
    for scale, part in enumerate(quantizer.split(ids)):
        f_hat, following = quantizer.accumulate(f_hat, scale, part)
        inputs.append(following)
    torch.testing.assert_close(torch.cat(inputs[:-1], 1), quantizer.next_inputs(ids))
    torch.testing.assert_close(f_hat, quantizer.lookup(ids))
    assert isinstance(quantizer, MultiScale), "so next-scale generators take it"


@pytest.mark.parametrize("codec", ["flexvar_vq", "nfig"])
def test_next_scale_generators_stand_on_them(codec: str) -> None:
    """One scale at a time gives what all scales at once give."""
    tokenizer = ModelSpec("tokenizer", codec, dict(registry.get(codec).tiny), {}, {"size": SIZE, "channels": 1})
    base = cast(Autoencoder, tokenizer.build())
    cast(Any, base.quantizer).codebook.weight.data.normal_()
    given = {"layout": base.layout.to_dict(), "classes": 3, "tokenizer": tokenizer.to_dict()}
    torch.manual_seed(0)
    model = cast(GroupGenerator, ModelSpec("generator", "var", {"depth": 1, "width": 16, "heads": 2}, {}, given).build().eval())
    model.adopt(tokenizer=base)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    ids, label = base.encode(images(3)).ids, Labels(torch.arange(3))
    steps = list(model.decode_steps(label, model.sampler.edited(guidance=0.0), torch.Generator(), forced=ids))
    with torch.no_grad():
        taught = model(ids, label, model.order.decode(model.layout, 3, None))
    torch.testing.assert_close(torch.cat([s.h_BnD for s in steps], 1), taught, atol=2e-5, rtol=1e-5)
    changed = ids.clone()
    changed[:, :1] = (changed[:, :1] + 1) % 16
    with torch.no_grad():
        other = model(changed, label, model.order.decode(model.layout, 3, None))
    assert torch.equal(other[:, :1], taught[:, :1])
    assert not torch.allclose(other[:, 1:5], taught[:, 1:5])


# --- columns ------------------------------------------------------------------------------------------------------


def wide(model: Autoencoder, width: int) -> Autoencoder:
    return model.on((1, width // cast(Columns, model.config.net).strip))


def test_shifting_by_a_strip_shifts_the_tokens() -> None:
    model = train(build("columns"), 20)
    strip, reach, width = 2, cast(Columns, model.config.net).reach, 48
    image = images(4, 1, width)
    shifted = torch.cat([images(4, 2, width)[..., :strip], image[..., :-strip]], dim=3)
    there, here = (wide(model, width).encode(x).ids for x in (shifted, image))
    assert there.shape == (4, 24)
    inner = slice(reach, 24 - reach - 1)
    assert torch.equal(there[:, 1:][:, inner], here[:, :-1][:, inner])
    assert not torch.equal(there[:, inner], here[:, inner]), "the picture is not the same everywhere"
    by_one = torch.cat([image[..., :1], image[..., :-1]], dim=3)
    assert not torch.equal(wide(model, width).encode(by_one).ids[:, 1:][:, inner], here[:, :-1][:, inner]), "a strip, not a pixel"


def test_a_column_depends_on_its_neighbourhood_alone() -> None:
    model = build("columns").double().eval()
    reach = cast(Columns, model.config.net).reach
    image = images(1, 1, 48).double().requires_grad_()
    gradient = torch.autograd.grad(model.encoder(image)[0, :, 0, 12].square().sum(), image)[0]
    touched = gradient[0, 0].abs().sum(0).unflatten(0, (24, 2)).sum(1) > 0
    assert touched.nonzero().flatten().tolist() == list(range(12 - reach, 12 + reach + 1))


def test_wider_images_than_trained_are_coded_and_decoded() -> None:
    model = train(build("columns", codes=64), 150)
    model32 = wide(model, 32)
    image = images(8, 999, 32)
    tokens = model32.encode(image)
    assert tokens.layout.grids == ((1, 16),)
    assert tokens.layout.axis == "sequence"
    again = model32.decode(tokens)
    assert again.shape == image.shape
    errors = [float((m.decode(m.encode(x)) - x).square().mean()) for m, x in ((model, images(8, 999)), (model32, image))]
    assert errors[1] < 1.5 * errors[0], errors
    assert errors[0] < 0.5 * float(image.square().mean())


# --- TokenBridge --------------------------------------------------------------------------------------------------


def bridge(levels: int = 16, dim: int = DIM, clip: float = 3.0) -> Dimensionwise:
    quantizer = Dimensionwise.Config(dim=dim, levels=levels, clip=clip).build((4, 4))
    draw = torch.Generator().manual_seed(5)
    quantizer.mean.copy_(torch.randn(dim, generator=draw))
    quantizer.std.copy_(torch.rand(dim, generator=draw) + 0.5)
    return quantizer


@pytest.mark.parametrize("levels", [2, 3, 16, 64])
def test_levels_and_ids_are_one_to_one(levels: int) -> None:
    quantizer = bridge(levels)
    ids = torch.arange(levels)[:, None].expand(levels, DIM)
    assert torch.equal(quantizer.quantise(quantizer.dequantise(ids)), ids)
    assert float(quantizer.dequantise(ids).diff(dim=0).min()) > 0
    value = 3 * torch.randn(500, DIM, generator=torch.Generator().manual_seed(0))
    once = quantizer.dequantise(quantizer.quantise(value))
    assert torch.equal(quantizer.dequantise(quantizer.quantise(once)), once)
    nearest = (value[..., None] - quantizer.dequantise(ids).T).abs().argmin(-1)
    assert torch.equal(quantizer.quantise(value), nearest)


def test_levels_are_means_of_equally_likely_bins() -> None:
    table = normal_levels(8, 10.0)
    z = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort().values
    torch.testing.assert_close(table, z.view(8, -1).mean(1), atol=0.01, rtol=0)
    torch.testing.assert_close(table, -table.flip(0))
    assert float(normal_levels(8, 2.0)[-1]) < float(table[-1]), "the clip moves the outer levels"


def test_statistics_are_those_of_the_given_latents() -> None:
    quantizer, draw = bridge(), torch.Generator().manual_seed(1)
    batches = [torch.randn(5, 2 * DIM, 4, 4, generator=draw) * 3 + 1 for _ in range(4)]
    quantizer.finish(iter(batches))
    mean = torch.cat(batches)[:, :DIM].transpose(0, 1).flatten(1)
    torch.testing.assert_close(quantizer.mean, mean.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(quantizer.std, mean.std(1, correction=0), atol=1e-5, rtol=1e-5)
    ids = quantizer.encode(torch.cat(batches))
    assert ids.shape == (20, 16, DIM)
    share = torch.bincount(ids.flatten(), minlength=16).double() / ids.numel()
    assert float(share.max()) < 2 / 16, "no level takes much more than its part of a normal latent"


def test_quantizing_after_training_costs_little_and_training_knows_nothing_of_it() -> None:
    model = train(build("tokenbridge", levels=32), 150)
    image = images(32, 999)
    continuous = float((model(image)[0].clamp(-1, 1) - image).square().mean())
    before = float((model.decode(model.encode(image)) - image).square().mean())
    weights = {k: v.clone() for k, v in model.named_parameters()}
    model.finish(iter([Batch(images(32, s)) for s in range(4)]))
    assert all(torch.equal(v, weights[k]) for k, v in model.named_parameters())
    error = float((model.decode(model.encode(image)) - image).square().mean())
    assert error < 1.5 * continuous, (continuous, error)
    assert error < before, "the measured spread serves better than that of a standard normal"
    assert model.layout.codebooks == 4
    assert model.layout.vocabulary == 32


def test_tokenbridge_quantizer_equals_the_official_one() -> None:
    """Ids and values of the released model's settings: 16 levels over [-5, 5] as three standard deviations (fixture tokenbridge)."""
    path = Path(__file__).parent / "fixtures/parity/tokenbridge.safetensors"
    if not path.exists():
        pytest.skip("the fixture belongs to the generator's family and is not here")
    found = load_file(path)
    quantizer = Dimensionwise.Config(dim=16, levels=16, clip=3.0).build((4, 4))
    quantizer.std.fill_((5.0 - -5.0) / (2 * 3.0))
    ids = quantizer.quantise(found["in/latent"].flatten(2).transpose(1, 2))
    assert torch.equal(ids, found["out/quant_indices"])
    torch.testing.assert_close(quantizer.dequantise(ids), found["out/quant_values"], atol=2e-5, rtol=0)


# --- DiGIT --------------------------------------------------------------------------------------------------------


def clusters(start: KMeans | None = KMeans(samples=8)) -> Clusters:  # noqa: B008 - frozen
    torch.manual_seed(3)
    book = Codebook.Config(codes=12, dim=DIM, update=EMA(decay=0.9), start=start, revival=Revival(patience=3, threshold=0.3))
    return Clusters.Config(codebook=book).build((4, 4)).double().train()


def features(step: int, rows: int = 12) -> Tensor:
    """Noise around eight centres."""
    draw = torch.Generator().manual_seed(step)
    centre = 3 * torch.randn(8, DIM, generator=torch.Generator().manual_seed(99))
    which = torch.randint(8, (rows, 4, 4), generator=draw)
    return (centre[which] + 0.1 * torch.randn(rows, 4, 4, DIM, generator=draw)).permute(0, 3, 1, 2).double()


def cluster_steps(quantizer: Clusters, shares: list[tuple[int, int]], steps: int = 15) -> None:
    """Steps over shares of a global batch of 12 rows."""
    for step in range(steps):
        for first, last in shares:
            quantizer(features(step)[first:last], Draws(0, step, steps, first, last, 12))
        quantizer.after_step(Draws(0, step, steps, shares[0][0], shares[-1][1], 12))


def worker(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    quantizer = clusters()
    cluster_steps(quantizer, [(0, 5)] if rank == 0 else [(5, 8), (8, 12)])
    save_file(quantizer.state_dict(), f"{folder}/{rank}.safetensors")


def test_centres_are_the_same_for_one_process_and_two_shares(tmp_path: Path) -> None:
    """Two real processes, one of them in micro-batches, end with the same bits, and with those of one process but for the order of sums."""
    launch(2, worker, str(tmp_path))
    alone = clusters()
    cluster_steps(alone, [(0, 12)])
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for key, value in alone.state_dict().items():
        assert torch.equal(states[0][key], states[1][key]), key
        torch.testing.assert_close(states[0][key], value, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("start", [KMeans(samples=8), None])
def test_clusters_find_the_groups_of_the_data(start: KMeans | None) -> None:
    quantizer = clusters(start)
    cluster_steps(quantizer, [(0, 12)], 40)
    z = features(1000)
    found = quantizer.eval()(z)
    assert float((found.z - z).square().mean()) < 3 * 0.1**2
    assert torch.equal(quantizer.lookup(quantizer.encode(z)), found.z)
    assert not found.losses
    assert not found.z.requires_grad


def test_digit_trains_its_decoder_alone() -> None:
    model = build("digit")
    assert model.config.needs == ("features",)
    torch.manual_seed(7)
    classifier = Classifier.of(SHAPE)
    model.adopt(features=classifier)
    frozen = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    assert all(torch.equal(v, frozen[f"network.trunk.{k}"]) for k, v in classifier.trunk.state_dict().items())
    train(model, 5)
    assert all(torch.equal(v, frozen[k]) for k, v in model.encoder.state_dict().items())
    assert {n.split(".")[0] for n, _ in model.phase_parameters("main")} == {"decoder"}
    torch.testing.assert_close(model.latents(images()), classifier.grid(images()))
    with pytest.raises(ConfigError, match="features"):
        model.adopt()
    with pytest.raises(ConfigError, match="features"):
        ModelSpec("tokenizer", "digit", {"dim": 16}, {}, {"size": SIZE, "channels": 1}).build()


def test_features_of_large_images_are_those_of_the_classifier() -> None:
    net = Frozen(source=Classified(shape=SHAPE), geometry=Small(channels=8, multipliers=(1, 1, 1), patch=2).net())
    assert net.grid(128) == (16, 16)
    assert net.encoder(128, 1, 16)(torch.zeros(1, 1, 128, 128)).shape == (1, 16, 16, 16)
    with pytest.raises(ConfigError, match="decoder starts from"):
        Frozen(source=Classified(shape=SHAPE), geometry=Small(channels=8, multipliers=(1,), patch=2).net()).grid(128)
    with pytest.raises(ConfigError, match="dim=64"):
        net.encoder(128, 1, 64)


# --- DINO weights -------------------------------------------------------------------------------------------------


class PlainViT(nn.Module):
    """The published forward pass in its plainest form, on a dict of released names."""

    def __init__(self, state: dict[str, Tensor], heads: int, registers: int) -> None:
        super().__init__()
        self.state, self.heads, self.registers = state, heads, registers

    def forward(self, image_B3HW: Tensor) -> Tensor:
        s = self.state
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        patch = s["patch_embed.proj.weight"].shape[-1]
        x = F.conv2d((image_B3HW / 2 + 0.5 - mean) / std, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=patch)
        h, w = x.shape[2:]
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + s["pos_embed"]
        x = torch.cat([x[:, :1], s["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
        for i in range(2):
            p, d = f"blocks.{i}.", x.shape[-1]
            a = F.linear(
                F.layer_norm(x, (d,), s[p + "norm1.weight"], s[p + "norm1.bias"], 1e-6), s[p + "attn.qkv.weight"], s[p + "attn.qkv.bias"]
            )
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in a.chunk(3, dim=2))
            o = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + s[p + "ls1.gamma"] * F.linear(o, s[p + "attn.proj.weight"], s[p + "attn.proj.bias"])
            m = F.layer_norm(x, (d,), s[p + "norm2.weight"], s[p + "norm2.bias"], 1e-6)
            m = F.linear(
                F.gelu(F.linear(m, s[p + "mlp.fc1.weight"], s[p + "mlp.fc1.bias"])), s[p + "mlp.fc2.weight"], s[p + "mlp.fc2.bias"]
            )
            x = x + s[p + "ls2.gamma"] * m
        x = F.layer_norm(x, (d,), s["norm.weight"], s["norm.bias"], 1e-6)
        return x[:, 1 + self.registers :].mT.unflatten(2, (h, w))


def dino_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random weights under the released names, and the network's shape."""
    d, draw = 12, torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 17, d), "register_tokens": (1, 2, d), "mask_token": (1, d)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 4, 4), "patch_embed.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,)}
    for i in range(2):
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, (rows, columns) in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        shapes |= {
            f"blocks.{i}.{name}": (d,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")
        }
    state = {name: 0.5 * torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    save_file(state, path)
    return state, {"width": d, "depth": 2, "heads": 3, "patch": 4, "grid_trained": 4, "registers": 2}


def test_dino_features_are_those_of_the_published_network(tmp_path: Path) -> None:
    path = tmp_path / "dino.safetensors"
    state, shape = dino_file(path)
    network = Dino(weights=str(path), **shape).build(1, 12).eval()
    grey = images(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(network(grey), PlainViT(state, 3, 2)(grey.expand(-1, 3, -1, -1)), atol=2e-5, rtol=1e-5)
        assert network(F.interpolate(grey, 24)).shape == (2, 12, 6, 6), "positions are resized"
        assert Dino(weights=str(path), side=16, **shape).build(3, 12)(torch.zeros(1, 3, 40, 40)).shape == (1, 12, 4, 4)


def test_dino_tokenizer_keeps_its_weights_and_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "dino.safetensors"
    _, shape = dino_file(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    changes = {f"net.source.{k}": v for k, v in shape.items() if k != "width"} | {"net.source.sha256": digest}
    args = {"codes": 8, "dim": 12, "dino": str(path), "channels": 8}
    spec = ModelSpec("tokenizer", "digit", args, changes, {"size": SIZE, "channels": 1})
    torch.manual_seed(0)
    model = cast(Autoencoder, spec.build())
    assert model.config.needs == ()
    train(model, 3)
    before, state = model.encode(images()).ids, model.state_dict()
    path.rename(tmp_path / "moved")
    again = cast(Autoencoder, spec.build())
    with pytest.raises(ConfigError, match="no such file"):
        again.encode(images())
    again.load_state_dict(state)
    assert torch.equal(again.eval().encode(images()).ids, before)
    path.write_bytes((tmp_path / "moved").read_bytes() + b" ")
    with pytest.raises(ConfigError, match="SHA-256"):
        spec.build()
    save_file({"cls_token": torch.zeros(1, 1, 12)}, path)
    with pytest.raises(ConfigError, match="not a network of this shape"):
        Dino(weights=str(path), **shape).build(1, 12)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: flexible(scales=(2, 1)), "scales"),
        (lambda: flexible(trained=(0,)), "trained"),
        (lambda: flexible(scales=(1, 3)), "4x4"),
        (lambda: Columns(strip=0, width=8), "strip=0"),
        (lambda: Columns(strip=2, width=8, kernel=2), "kernel=2"),
        (lambda: Columns(strip=3, width=8).grid(16), "size=16"),
        (lambda: Dimensionwise.Config(dim=4, levels=1), "levels=1"),
        (lambda: Dimensionwise.Config(dim=4, levels=64, clip=0.5), "clip=0.5"),
        (lambda: Clusters.Config(codebook=Codebook.Config(codes=4, dim=4)), "averages"),
        (lambda: Dino(weights=""), "weights"),
        (lambda: Dino(weights="x", heads=5), "heads=5"),
        (lambda: Dino(weights="x").grid(32), "side=32"),
    ],
)
def test_impossible_values_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()

"""Laws of FlexVAR (codes of any size) and NFIG (bands of frequencies)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from small_quantizers import check_inputs
from tiny_tokenizers import DIM, ROWS, SIZE, build, images, latents, train
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Labels, LayoutError
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Learned
from tokenloom.models.parts.quantizers.flexible import Flexible
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers.nfig.quantizer import Frequency, low_pass


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
    path = Path(__file__).parents[1] / "fixtures/parity/flexvar.safetensors"
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
    check_inputs(quantizer, ids)
    assert isinstance(quantizer, MultiScale), "so next-scale generators take it"


@pytest.mark.parametrize("codec", ["flexvar_vq", "nfig"])
def test_next_scale_generators_stand_on_them(codec: str) -> None:
    """One scale at a time gives what all scales at once give."""
    tokenizer = ModelSpec("tokenizer", codec, dict(registry.get(codec).tiny), {}, {"signal": signals.image(SIZE, 1).to_dict()})
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
    steps = list(model.decode_steps(label, model.sampler.edited(guidance=0.0), SampleDraws.of(0, 0, label.rows), forced=ids))
    with torch.no_grad():
        taught = model(ids, label, model.order.decode(model.layout, 3, None))
    torch.testing.assert_close(torch.cat([s.h_BnD for s in steps], 1), taught, atol=2e-5, rtol=1e-5)
    changed = ids.clone()
    changed[:, :1] = (changed[:, :1] + 1) % 16
    with torch.no_grad():
        other = model(changed, label, model.order.decode(model.layout, 3, None))
    assert torch.equal(other[:, :1], taught[:, :1])
    assert not torch.allclose(other[:, 1:5], taught[:, 1:5])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: flexible(scales=(2, 1)), "scales"),
        (lambda: flexible(trained=(0,)), "trained"),
        (lambda: flexible(scales=(1, 3)), "4x4"),
    ],
)
def test_impossible_scales_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()

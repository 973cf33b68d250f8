"""Options of the official tokenizers that the fixtures leave out: what each must do, on small quantizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.layout import LayoutError, TokenLayout
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.parts.nets.conv import Geometry
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Fixed
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.lfq import LFQ
from tokenloom.models.parts.quantizers.multiscale import MultiScale
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.pretrained import families
from tokenloom.models.pretrained.infinity_bsq import scales
from tokenloom.models.tokenizers.autoencoder import checked
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Dropout, Residual


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_scales_of_any_shape(kind: str) -> None:
    grids = ((1, 1), (2, 1), (4, 3))
    config = (
        MultiScaleBSQ.Config(bits=4, scales=grids)
        if kind == "bsq"
        else MultiScale.Config(codebook=Codebook.Config(codes=8, dim=4), scales=grids)
    )
    torch.manual_seed(0)
    quantizer, z = config.build((4, 3)), torch.randn(2, 4, 4, 3)
    assert config.layout((4, 3)).grids == grids
    ids = quantizer.encode(z)
    assert ids.shape[1] == 1 + 2 + 12
    assert torch.allclose(quantizer.lookup(ids), quantizer(z).z, atol=1e-6)
    # decoding scale by scale gives what teacher forcing gives
    f_hat, given = quantizer.start(2), []
    for scale, part in enumerate(quantizer.split(ids)):
        f_hat, following = quantizer.accumulate(f_hat, scale, part)
        given.append(following)
    assert torch.allclose(torch.cat(given[:-1], 1), quantizer.next_inputs(ids), atol=1e-6)


@pytest.mark.parametrize("wrong", [((2, 2), (1, 3)), ((1, 2), (1, 2)), ((0, 1),), ()])
def test_scales_out_of_order_are_refused(wrong: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="growing grid sizes"):
        MultiScaleBSQ.Config(bits=4, scales=wrong)


def test_released_schedules() -> None:
    assert scales("0.06M")[-1] == (16, 16)
    assert len(scales("1M")) == 13
    assert scales("0.60M", 2.0)[-1] == (74, 37)
    assert scales("0.60M", 0.5)[-1] == (37, 74)
    assert scales("0.25M", 0.333)[-1] == (18, 54)
    with pytest.raises(ConfigError, match=r"h_div_w=1\.1"):
        scales("1M", 1.1)
    with pytest.raises(ConfigError, match="pn='2M'"):
        scales("2M")


def test_sums_over_codes_are_those_over_bits() -> None:
    z = torch.randn(20, 5, dtype=torch.float64)
    by_bits = Entropy(temperature=0.5).of_bits(z, 1.0)
    by_codes = Entropy(temperature=0.5, sums="codes").of_bits(z, 1.0)
    assert all(torch.allclose(a, b) for a, b in zip(by_bits, by_codes))


def test_the_two_entropies_have_weights_of_their_own() -> None:
    each, mean = torch.tensor(2.0), torch.tensor(3.0)
    assert float(Entropy(weight=0.5, confidence=0.0, diversity=2.0)(each, mean)) == -3.0
    assert float(Entropy(weight=0.5, confidence=4.0, diversity=0.0)(each, mean)) == 4.0


def test_codebooks_of_unequal_size_bound_their_ids() -> None:
    config = LFQ.Config(bits=5, factors=(3, 2))
    layout = config.layout((2, 2))
    assert layout.vocabularies == (8, 4)
    ids = config.build((2, 2)).encode(torch.randn(3, 5, 2, 2))
    assert int(ids[..., 0].max()) < 8
    assert int(ids[..., 1].max()) < 4
    wrong = Tokens(torch.tensor([[[0, 5]] * 4]), layout)
    with pytest.raises(LayoutError, match="codebook 1 has 4 codes"):
        checked(wrong, layout)
    assert isinstance(checked(Tokens(ids, layout), layout), torch.Tensor)
    assert LFQ.Config(bits=4, factors=(2, 2)).layout((2, 2)) == TokenLayout(grids=((2, 2),), vocabulary=4, codebooks=2)


@pytest.mark.parametrize("shared", [False, True])
def test_heads_with_and_without_a_codebook_of_their_own(shared: bool) -> None:
    part = VQ.Config(codebook=Codebook.Config(codes=8, dim=3, update=EMA()))
    config = Grouped.Config(part=part, groups=2, books="shared" if shared else "separate")
    torch.manual_seed(0)
    quantizer, z = config.build((2, 2)).train(), torch.randn(3, 6, 2, 2)
    ids = quantizer.encode(z)
    assert ids.shape == (3, 4, 2)
    tables = [quantizer.parts[0 if shared else q].codebook.weight for q in range(2)]
    for q, (piece, table) in enumerate(zip(z.chunk(2, 1), tables)):
        expected = torch.cdist(piece.flatten(2).transpose(1, 2), table).argmin(-1)
        assert torch.equal(ids[..., q], expected)
        assert torch.equal(quantizer.lookup(ids).chunk(2, 1)[q].flatten(2).transpose(1, 2), table[ids[..., q]])
    assert torch.allclose(quantizer(z).z, quantizer.lookup(ids), atol=1e-6)
    assert sum(1 for name in quantizer.state_dict() if name.endswith("codebook.weight")) == (1 if shared else 2)


def test_one_codebook_of_all_stages_averages_stage_after_stage() -> None:
    decay = 0.6
    stage = VQ.Config(codebook=Codebook.Config(codes=4, dim=2, update=EMA(decay=decay)))
    torch.manual_seed(0)
    quantizer = Residual.Config(stage=stage, stages=3, books="shared").build((1, 5)).train()
    book = quantizer.stages[0].codebook
    book.count.fill_(1.0)
    book.sums.copy_(book.weight)
    count, sums, table = book.count.clone(), book.sums.clone(), book.weight.clone()
    z, draws = torch.randn(2, 2, 1, 5), Draws.whole(0, 0, 2)
    quantizer(z, draws)
    quantizer.after_step(draws)
    rest = z.flatten(2).transpose(1, 2).flatten(0, 1)
    for _ in range(3):
        ids = torch.cdist(rest, table).argmin(-1)
        hit = torch.nn.functional.one_hot(ids, 4).float()
        count, sums = count.lerp(hit.sum(0), 1 - decay), sums.lerp(hit.T @ rest, 1 - decay)
        rest = rest - table[ids]
    assert torch.allclose(book.count, count, atol=1e-6)
    assert torch.allclose(book.sums, sums, atol=1e-6)
    assert torch.allclose(book.weight, sums / count[:, None], atol=1e-5)


def test_stages_drop_out_in_training_alone() -> None:
    dropout = Dropout(first=1, multiple=2)
    assert [dropout.kept(5, u) for u in (0.0, 0.3, 0.6, 0.9)] == [2, 4, 4, 5]
    stage = VQ.Config(codebook=Codebook.Config(codes=4, dim=2))
    torch.manual_seed(0)
    quantizer = Residual.Config(stage=stage, stages=4, dropout=Dropout()).build((1, 5)).train()
    z, kept = torch.randn(2, 2, 1, 5), set()
    for step in range(12):
        draws = Draws.whole(0, step, 2)
        quantized, count = quantizer(z, draws), quantizer.kept(draws)
        kept.add(count)
        assert bool((quantized.ids[..., :count] >= 0).all())
        assert bool((quantized.ids[..., count:] == -1).all())
        assert torch.allclose(quantized.z, quantizer.lookup(quantized.ids), atol=1e-6)
        assert torch.allclose(quantizer.partial(quantizer.encode(z))[count - 1], quantized.z, atol=1e-6)
    assert len(kept) > 1
    grads = torch.autograd.grad(sum(quantized.losses.values()), list(quantizer.parameters()))
    assert [bool(g.any()) for g in grads] == [i < count for i in range(4)]
    assert bool((quantizer.eval()(z, draws).ids >= 0).all())


def test_a_commitment_by_cross_entropy() -> None:
    config = VQ.Config(codebook=Codebook.Config(codes=5, dim=2, update=EMA()), beta=0.5, commitment="cross_entropy")
    quantizer, z = config.build((1, 4)), torch.randn(2, 2, 1, 4, requires_grad=True)
    quantized = quantizer(z)
    distance = torch.cdist(z.flatten(2).transpose(1, 2).flatten(0, 1), quantizer.codebook.weight)
    expected = -(-distance).log_softmax(-1).gather(1, quantized.ids.flatten()[:, None])
    assert torch.allclose(quantized.losses["commitment"], 0.5 * expected.mean())


def test_a_fixed_codebook_stays() -> None:
    config = VQ.Config(codebook=Codebook.Config(codes=5, dim=2, update=Fixed()))
    quantizer, draws = config.build((1, 4)).train(), Draws.whole(0, 0, 2)
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantized = quantizer(torch.randn(2, 2, 1, 4), draws)
    quantizer.after_step(draws)
    assert not list(quantizer.parameters())
    assert set(quantized.losses) == {"commitment"}
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())


def vqpt(cls: str, n: int = 6, **kw: Any) -> dict[str, Any]:
    return {"config": {"seed": 0, "cls": cls, "kw": kw, "n": n}}


@pytest.mark.parametrize(
    "info",
    [
        vqpt("VectorQuantize", dim=6, codebook_size=8, heads=2, codebook_dim=3),
        vqpt("VectorQuantize", dim=6, codebook_size=8, heads=2, separate_codebook_per_head=True, use_cosine_sim=True),
        vqpt("VectorQuantize", dim=6, codebook_size=8, codebook_dim=4, layernorm_after_project_in=True),
        vqpt("VectorQuantize", dim=6, codebook_size=8, learnable_codebook=True, ema_update=False, rotation_trick=False),
        vqpt("VectorQuantize", dim=6, codebook_size=8, freeze_codebook=True, commitment_use_cross_entropy_loss=True),
        vqpt("ResidualVQ", dim=6, codebook_size=8, codebook_dim=4, num_quantizers=3, shared_codebook=True, quantize_dropout=True),
        vqpt("ResidualVQ", dim=6, codebook_size=8, num_quantizers=2, use_cosine_sim=True, commitment_weight=0.3, eps=1e-3),
        vqpt("FSQ", levels=[5, 3], dim=6, num_codebooks=2, preserve_symmetry=True, projection_has_bias=False),
        vqpt("ResidualFSQ", levels=[5, 3], dim=6, num_quantizers=2, bound_hard_clamp=False, soft_clamp_input_value=2.0),
        vqpt("LFQ", dim=6, codebook_size=4, num_codebooks=2, spherical=True, codebook_scale=0.5, cosine_sim_project_in=True),
        vqpt("LFQ", codebook_size=8, keep_num_codebooks_dim=True, soft_clamp_input_value=3.0, commitment_loss_weight=0.1),
        vqpt("SimVQ", dim=6, codebook_size=8, frozen_codebook_dim=4, commitment_weight=0.5),
    ],
    ids=lambda info: info["config"]["cls"],
)
def test_options_of_vector_quantize_pytorch(info: dict[str, Any]) -> None:
    """Each builds, names all of its state both ways, and quantizes to what its ids stand for."""
    family = families()["vqpt_vq"]
    torch.manual_seed(0)
    model, names = family.build(info), family.names(info)
    state = names.dump(dict(model.state_dict()))
    back = names.load(state)
    assert back.keys() == model.state_dict().keys()
    dim = info["config"]["kw"].get("dim") or 3
    inputs = {"x": torch.randn(2, 6, dim)}
    got = family.outputs(model.eval(), info, inputs)
    assert torch.allclose(got["quantized"], got["decoded_from_indices"], atol=1e-5)
    assert all(bool(v.isfinite().all()) for v in got.values())


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (vqpt("VectorQuantize", dim=6, codebook_size=8, sideways=True), r"config\.sideways=True: the family does not know this option"),
        (vqpt("VectorQuantize", dim=6, codebook_size=8, affine_param=True), r"config\.affine_param=True: only False"),
        (vqpt("LFQ", dim=6, frac_per_sample_entropy=0.5), "drawn at random"),
        (vqpt("Sideways"), r"config\.cls='Sideways'"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(info: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        families()["vqpt_vq"].build(info)


PARITY = Path(__file__).parents[1] / "fixtures" / "parity"

#: Family, what its recorded settings are changed to, and official names that the checkpoint then has, or has no more (with a dash).
CHANGED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("mar_klvae", {"resolution": 16, "attn_resolutions": [8, 4]}, ["encoder.down.1.attn.0.q.weight", "-decoder.up.1.attn.0.q.weight"]),
    ("mar_klvae", {"resamp_with_conv": False}, ["-encoder.down.0.downsample.conv.weight", "-decoder.up.1.upsample.conv.weight"]),
    ("llamagen_vq", {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [2, 1]}, ["encoder.conv_blocks.1.attn.0.q.weight"]),
    ("llamagen_vq", {"codebook_l2_norm": False, "entropy_loss_ratio": 0.1}, []),
    ("llamagen_vq", {"resamp_with_conv": False}, ["-encoder.conv_blocks.0.downsample.conv.weight"]),
    ("var_vqvae", {"share_quant_resi": 0}, ["quantize.quant_resi.4.weight"]),
    ("var_vqvae", {"share_quant_resi": 0, "default_qresi_counts": 2}, ["quantize.quant_resi.1.weight", "-quantize.quant_resi.2.weight"]),
    ("var_vqvae", {"share_quant_resi": 1, "quant_conv_ks": 1}, ["quantize.quant_resi.qresi.weight"]),
    ("var_vqvae", {"using_znorm": True, "quant_resi": 0.0}, ["-quantize.quant_resi.qresi_ls.0.weight"]),
    ("var_vqvae", {"using_sa": False, "using_mid_sa": False}, ["-encoder.down.2.attn.0.qkv.weight", "-encoder.mid.attn_1.qkv.weight"]),
    ("maskgit_vqgan", {"num_resolutions": 2, "commitment_cost": 0.5}, ["-encoder.down.2.block.0.conv1.weight"]),
    ("titok", {"decoder_width": 32, "decoder_layers": 1, "decoder_heads": 2}, ["-decoder.transformer.1.ln_1.weight"]),
    ("titok", {"use_l2_norm": False, "num_latent_tokens": 3}, []),
]


@pytest.mark.parametrize(("name", "changes", "expected"), CHANGED, ids=lambda value: value if isinstance(value, str) else "")
def test_options_of_the_official_tokenizers(name: str, changes: dict[str, Any], expected: list[str]) -> None:
    """Each builds another model, names all of its state both ways, and encodes to what its ids decode from."""
    info = json.loads((PARITY / f"{name}.json").read_text())
    family, changed = families()[name], {"config": info["config"] | changes}
    assert family.config(changed) != family.config(info)
    torch.manual_seed(0)
    model = family.build(changed).eval()
    names, state = family.names(changed), dict(model.state_dict())
    official = names.dump(state)
    assert names.load(official).keys() == state.keys()
    wrong = [key for key in expected if (key.removeprefix("-") in official) == key.startswith("-")]
    assert not wrong, sorted(official)
    side = info["config"].get("image") or info["config"]["crop_size"]
    image = torch.rand(1, 3, side, side)
    tokens = model.encode(image)
    assert model.decode(tokens).shape == image.shape


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CHANGED} | {"ibq", "open_magvit2_lfq", "infinity_bsq"}))
def test_a_setting_that_a_family_does_not_know_is_refused(name: str) -> None:
    info = json.loads((PARITY / f"{name}.json").read_text())
    with pytest.raises(ConfigError, match=r"config\.sideways=1: the family does not know"):
        families()[name].build({"config": info["config"] | {"sideways": 1}})


def test_a_decoder_with_levels_of_its_own() -> None:
    own = Geometry(channels=8, multipliers=(1, 2), decoder_multipliers=(2, 3), decoder_attention=(), attention=(1,), norm_groups=4)
    assert own.decoding.widths == (16, 24)
    decoder = own.decoder((8, 8), 3, 4)
    assert decoder.conv_in.out_channels == 24
    assert not any(level.attention for level in decoder.levels)
    assert any(level.attention for level in own.encoder((8, 8), 3, 4).levels)
    with pytest.raises(ConfigError, match="as many levels as the encoder, 2"):
        Geometry(channels=8, multipliers=(1, 2), decoder_multipliers=(2,), norm_groups=4)

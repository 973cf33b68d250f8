"""Nets of tokenizers: shapes, what may and may not reach what, precision under autocast."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.parts.nets.base import Net, signed, to_pixels, unit
from tokenloom.models.parts.nets.conv import Geometry
from tokenloom.models.parts.nets.queries import CodeQueries, Queries, QueryEncoder
from tokenloom.models.parts.nets.vit import Blocks, PatchEmbedding, PatchPixels, Trunk, ViT, patchify, sines, unpatchify
from tokenloom.models.parts.visibility import Causal
from tokenloom.models.zoo.tokenizers.maskgit_vqgan.net import MaskGITConv, OutputShortcutBlock

BLOCKS = Blocks.Config(width=16, depth=2, heads=2)
NETS: dict[str, Net] = {
    "maskgit": MaskGITConv(channels=8, multipliers=(1, 2), blocks=1, patch=2, norm_groups=4),
    "maskgit stem": MaskGITConv(channels=8, multipliers=(1, 2), blocks=1, patch=2, norm_groups=4, stem=4),
    "conv stem": Geometry(channels=8, multipliers=(1,), patch=4, norm_groups=4, middle="none", stem=4),
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
    z = net.encoder((16, 16), 3, 6)(image)
    assert z.shape == (2, 6, *net.grid((16, 16)))
    decoder = net.decoder((16, 16), 3, 6)
    assert decoder(z).shape == image.shape
    assert any(decoder.last is p for p in decoder.parameters())
    assert net.axis == ("grid" if name in ("maskgit", "maskgit stem", "conv stem", "vit") else "sequence")


@pytest.mark.parametrize("name", NETS)
def test_a_size_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="size=18"):
        NETS[name].grid((18, 18))


@pytest.mark.parametrize("name", NETS)
def test_rows_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(0)
    encoder, decoder = NETS[name].encoder((16, 16), 1, 6).eval(), NETS[name].decoder((16, 16), 1, 6).eval()
    image = random(4, 1, 16, 16)
    with torch.no_grad():
        whole, alone = decoder(encoder(image)), decoder(encoder(image[2:3]))
    torch.testing.assert_close(whole[2:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv", *NETS])
def test_norms_keep_single_precision_under_autocast(name: str) -> None:
    """What leaves a norm is float32, and equal to what float32 makes of the same input."""
    net = NETS.get(name) or Geometry(channels=8, multipliers=(1, 2), norm_groups=4)
    torch.manual_seed(0)
    modules = nn.Sequential(net.encoder((16, 16), 1, 6), net.decoder((16, 16), 1, 6))
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


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_stem_shows_no_grid_where_patches_do() -> None:
    """What is the same everywhere is decoded to pixels that are the same everywhere, but for the borders."""
    torch.manual_seed(0)
    flat = random(1, 8, 1, 1).expand(1, 8, 6, 6)
    stem, patches = to_pixels(8, 3, 4, stem=4)(flat), to_pixels(8, 3, 4, stem=0)(flat)
    assert stem.shape == patches.shape == (1, 3, 24, 24)
    inside = stem[..., 8:16, 8:16]
    torch.testing.assert_close(inside, inside[..., :1, :1].expand_as(inside), atol=1e-5, rtol=1e-5)
    assert float(patches[..., 8:16, 8:16].detach().std(dim=(2, 3)).min()) > 0.05


@pytest.mark.parametrize(("stem", "patch"), [(4, 3), (4, 1)])
def test_a_stem_that_does_not_lead_to_the_patch_is_refused(stem: int, patch: int) -> None:
    with pytest.raises(ConfigError, match=f"net.stem={stem}"):
        Geometry(channels=8, multipliers=(1,), patch=patch, norm_groups=4, stem=stem)


# --- patches and blocks -------------------------------------------------------------------------------------------


def test_patches_are_cut_and_put_back() -> None:
    image = random(2, 3, 8, 12)
    cut = patchify(image, 4)
    assert cut.shape == (2, 6, 48)
    assert torch.equal(cut[1, 4], image[1, :, 4:8, 4:8].permute(1, 2, 0).flatten())  # second row, second column; (row, column, channel)
    assert torch.equal(unpatchify(cut, 4, (2, 3)), image)


def test_patches_embed_what_patchify_cuts() -> None:
    torch.manual_seed(0)
    patches, image = PatchEmbedding(3, 4, 10), random(2, 3, 8, 8)
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
    later = x.clone()
    later[:, 5:] += 1.0
    with torch.no_grad():
        a, b, free = stack(x, Causal()), stack(later, Causal()), stack(later)
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
        assert not torch.allclose(stack(x, context_BTD=context), stack(x, context_BTD=other), atol=1e-3)
        a, b = (stack(x, context_BTD=c, context_mask=mask) for c in (context, other))
    torch.testing.assert_close(a, b)


def test_condition_gates_start_closed_and_open() -> None:
    torch.manual_seed(0)
    stack = replace(BLOCKS, cond=5).build()
    x, cond = random(2, 3, 16), random(2, 5, seed=1)
    assert torch.equal(stack(x, cond_BD=cond), x)
    for block in stack.blocks:
        nn.init.normal_(block.modulation.weight, std=0.1)
    out = stack(x, cond_BD=cond)
    assert not torch.allclose(out, x, atol=1e-3)
    assert not torch.allclose(out, stack(x, cond_BD=-cond), atol=1e-3)


def test_a_trunk_tells_places_apart() -> None:
    torch.manual_seed(0)
    trunk, same = Trunk(BLOCKS, (2, 2), 3), torch.ones(1, 4, 16)
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
    encoder, image = NETS["scrambled"].encoder((16, 16), 1, 6), random(2, 1, 16, 16)
    assert isinstance(encoder, QueryEncoder)
    with torch.no_grad():
        patches = encoder.patches(unit(image))
        x_BND = encoder.trunk(patches, encoder.queries.expand(2, -1, -1))[1]
        expected = torch.einsum("ld,bdn->bln", encoder.out.weight, x_BND.reshape(2, 16, 5)) + encoder.out.bias[None, :, None]
        got = encoder(image)
    torch.testing.assert_close(got[:, :, 0], expected, atol=1e-5, rtol=1e-5)


def test_code_queries_give_logits_on_the_patch_grid() -> None:
    net = CodeQueries(patch=4, tokens=5, encoder_blocks=BLOCKS, decoder_blocks=BLOCKS, codes=11)
    assert net.decoder((16, 16), 1, 6)(random(2, 6, 1, 5)).shape == (2, 11, 4, 4)


def test_impossible_queries_are_refused() -> None:
    for fields in ({"tokens": 0}, {"smooth": 2}):
        with pytest.raises(ConfigError, match="net"):
            replace(NETS["queries"], **fields)


def test_sines_tell_rows_and_columns_of_any_grid_apart() -> None:
    """A grid of 2 by 8 has as many positions as one of 4 by 4, and none of its places but the first."""
    wide, square = sines((2, 8), 16), sines((4, 4), 16)
    assert len(wide.unique(dim=0)) == 16
    assert torch.equal(wide[0], square[0])
    # The second row of two stands half-way down, as the third of four; the fifth of eight columns half-way across, as the third of four.
    assert torch.equal(wide[8], square[8])
    assert torch.equal(wide[4], square[2])

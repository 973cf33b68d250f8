"""Laws of the quantizer family: ids and codes are each other's inverse, gradients arrive, values are checked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_quantizers import ALL, GRID, ROWS, SINGLE, build, every_id, latents, preimage, vq

from tokenloom.models.parts.quantizers.fsq import FSQ, Clamp
from tokenloom.models.parts.quantizers.gradients import Rotation, Straight
from tokenloom.models.parts.quantizers.lfq import BSQ, LFQ, pack, unpack
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Each, Residual


@pytest.mark.parametrize("name", SINGLE)
def test_every_id_is_the_id_of_its_code(name: str) -> None:
    ids = every_id(name)
    quantizer = build(name, (1, ids.shape[1])).eval()
    code = quantizer.lookup(ids)
    assert code.shape == (1, ALL[name].channels()[1], 1, ids.shape[1])
    z = preimage(quantizer, code)
    assert torch.equal(quantizer.encode(z), ids)
    again = quantizer(z)
    assert torch.equal(again.ids, ids)
    torch.testing.assert_close(again.z, code, atol=1e-6, rtol=1e-6)
    assert len(code[0, :, 0].T.unique(dim=0)) == ids.shape[1], "two ids have one code"


@given(levels=st.lists(st.integers(2, 6), min_size=1, max_size=4), clamp=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_fsq_ids_count_all_combinations_of_levels(levels: list[int], clamp: bool, seed: int) -> None:
    config = FSQ.Config(levels=tuple(levels), **({"bound": Clamp()} if clamp else {}))
    total = math.prod(levels)
    quantizer = config.build((1, total))
    code = quantizer.lookup(torch.arange(total)[None])
    assert torch.equal(quantizer.encode(preimage(quantizer, code)), torch.arange(total)[None])
    assert [len(channel.unique()) for channel in code[0]] == levels
    assert float(code.min()) == -1
    assert float(code.max()) <= 1
    z = 3 * torch.randn(1, len(levels), 1, total, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(quantizer(z).z, quantizer.lookup(quantizer.encode(z)))


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), data=st.data())
@settings(max_examples=40, deadline=None)
def test_bits_and_ids_are_each_others_inverse(sizes: list[int], data: st.DataObject) -> None:
    bits = torch.tensor([data.draw(st.lists(st.integers(0, 1), min_size=sum(sizes), max_size=sum(sizes))) for _ in range(3)])
    ids = pack(bits, tuple(sizes))
    assert torch.equal(unpack(ids, tuple(sizes)), bits)
    assert bool((ids < torch.tensor([2**n for n in sizes])).all())


def test_the_first_bit_is_the_lowest_and_zero_is_negative() -> None:
    z = torch.tensor([3.0, -1.0, 0.0, 0.5])[None, :, None, None]
    for config in (LFQ.Config(bits=4), BSQ.Config(bits=4)):
        assert config.build((1, 1)).encode(z).tolist() == [[0b1001]]
    assert replace(LFQ.Config(bits=4), factors=(1, 3)).build((1, 1)).encode(z).tolist() == [[[1, 0b100]]]


@pytest.mark.parametrize("name", ALL)
def test_ids_are_as_the_layout_says(name: str) -> None:
    quantizer, layout = build(name).eval(), ALL[name].layout(GRID)
    z = latents(name)
    quantized = quantizer(z)
    shape = (ROWS, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
    assert quantized.ids.shape == shape
    assert quantized.ids.dtype == torch.int64
    assert 0 <= int(quantized.ids.min()) <= int(quantized.ids.max()) < layout.vocabulary
    assert torch.equal(quantizer.encode(z), quantized.ids)
    assert quantized.z.shape == (ROWS, ALL[name].channels()[1], *GRID)
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.z, atol=1e-5, rtol=1e-5)
    usage = quantized.stats["usage"]
    sizes = layout.scale_sizes if len(layout.grids) > 1 else (layout.length,) * layout.codebooks
    assert usage.sum(1).tolist() == [ROWS * n for n in sizes]


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_latents(name: str) -> None:
    quantizer = build(name).train()
    z = latents(name).requires_grad_()
    quantized = quantizer(z)
    # a plain sum would be blind where codes have one length
    output = (quantized.z * torch.randn(quantized.z.shape, generator=torch.Generator().manual_seed(1))).sum()
    for value in (output, *(v for k, v in quantized.losses.items() if k == "commitment")):
        gradient = torch.autograd.grad(value, z, retain_graph=True)[0]
        assert bool(gradient.isfinite().all())
        assert float((gradient.abs().sum(1) > 0).float().mean()) > 0.9
    if any(p.requires_grad for p in quantizer.parameters()):
        loss = output + sum(quantized.losses.values())
        found = torch.autograd.grad(loss, list(quantizer.parameters()), allow_unused=True)
        assert all(g is not None and float(g.abs().sum()) > 0 for g in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_finite_and_changes_no_id(name: str, dtype: torch.dtype) -> None:
    quantizer = build(name)
    z = (30 * latents(name)).to(dtype)
    z[0, :, 0, 0] = 0  # a vector without direction
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(z)
        assert torch.equal(quantizer.encode(z), half.ids)
    assert torch.equal(half.ids, quantizer(z.float()).ids)
    assert bool(half.z.isfinite().all())
    assert all(bool(v.isfinite()) for v in half.losses.values())


def test_rotation_keeps_the_angle_between_gradient_and_vector() -> None:
    draw = torch.Generator().manual_seed(0)
    z, q, g = (torch.randn(50, 6, generator=draw, dtype=torch.float64) for _ in range(3))
    z.requires_grad_()
    turned = Rotation()(z, q)
    torch.testing.assert_close(turned.detach(), q)
    back = torch.autograd.grad((turned * g).sum(), z)[0]
    torch.testing.assert_close(F.cosine_similarity(back, z.detach()), F.cosine_similarity(g, q))
    torch.testing.assert_close(back.norm(dim=1), g.norm(dim=1) * q.norm(dim=1) / z.detach().norm(dim=1))
    straight = torch.autograd.grad((Straight()(z, q) * g).sum(), z)[0]
    torch.testing.assert_close(straight, g)


@pytest.mark.parametrize(("gradient", "times"), [(Straight(), 1), (Each(), 3)])
def test_residual_gradient_is_one_or_one_a_stage(gradient: Any, times: int) -> None:
    quantizer = Residual.Config(stage=vq(), stages=3, gradient=gradient).build(GRID)
    z = torch.randn(2, 4, *GRID, requires_grad=True)
    weight = torch.randn(2, 4, *GRID)
    torch.testing.assert_close(torch.autograd.grad((quantizer(z).z * weight).sum(), z)[0], times * weight)

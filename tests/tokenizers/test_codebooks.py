"""How codebooks start, learn and are kept in use; stages and scales lower the error."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_quantizers import ALL, GRID, ROWS, build, check_inputs, latents, vq

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Learned, Revival
from tokenloom.models.parts.quantizers.entropy import Entropy
from tokenloom.models.parts.quantizers.fsq import FSQ
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.lfq import BSQ, LFQ, unpack
from tokenloom.models.parts.quantizers.multiscale_bsq import MultiScaleBSQ
from tokenloom.models.parts.quantizers.self_correction import SelfCorrection, corrected
from tokenloom.models.zoo.tokenizers.ibq.quantizer import IBQ
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Residual, residual_fsq
from tokenloom.models.zoo.tokenizers.simvq.quantizer import SimVQ


@given(d=st.integers(1, 8), seed=st.integers(0, 99), temperature=st.floats(0.05, 2))
@settings(max_examples=30, deadline=None)
def test_entropy_of_bits_is_that_of_the_table_of_codes(d: int, seed: int, temperature: float) -> None:
    z = torch.randn(9, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    code = 2.0 * unpack(torch.arange(2**d)[:, None], (d,)).double() - 1
    entropy = Entropy(temperature=temperature)
    logits = -(z[:, None] - 0.5 * code).square().sum(-1)
    torch.testing.assert_close(torch.stack(entropy.of_bits(z, 0.5)), torch.stack(entropy.of_logits(logits)))
    bound = replace(entropy, span=max(1, d // 2)).of_bits(z, 0.5)[1]
    assert float(bound) >= float(entropy.of_bits(z, 0.5)[1]) - 2e-5 * 2**d


def test_entropy_of_eighteen_bits_needs_no_table_of_vectors_by_codes() -> None:
    z = torch.randn(500, 18, requires_grad=True)  # the table would hold 500 x 2^18 numbers: half a gigabyte
    each, mean = Entropy(temperature=1.0).of_bits(z, 1.0)
    assert bool(torch.autograd.grad(each - mean, z)[0].isfinite().all())
    assert 0 < float(each.detach()) < float(mean.detach()) < 18 * math.log(2)


def test_entropy_rewards_sure_vectors_and_even_use() -> None:
    even = 5.0 * (2 * unpack(torch.arange(16)[:, None], (4,)) - 1).float()
    each, mean = Entropy().of_bits(even, 1.0)
    torch.testing.assert_close(torch.stack([each, mean]), torch.tensor([0.0, 4 * math.log(2)]), atol=1e-3, rtol=0)
    assert float(Entropy().of_bits(even[:1].expand(16, 4), 1.0)[1]) < 1e-3
    assert float(Entropy().of_bits(0 * even, 1.0)[0]) == pytest.approx(4 * math.log(2))


def train(quantizer: Quantizer, steps: int, z_of: Any, micro: int = ROWS) -> None:
    quantizer.train()
    for step in range(steps):
        z = z_of(step)
        for first in range(0, len(z), micro):
            quantizer(z[first : first + micro], Draws(0, step, steps, first, min(first + micro, len(z)), len(z)))
        quantizer.after_step(Draws.whole(0, step, len(z), steps))


@pytest.mark.parametrize("update", [Learned(), EMA(), EMA(smoothing=1e-5, length="unit")])
def test_codes_start_as_centres_of_the_first_batch(update: Learned | EMA) -> None:
    centre = 5 * F.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(5)), dim=1)
    z = centre[torch.arange(ROWS * 16) % 12].view(ROWS, 4, 4, 4).permute(0, 3, 1, 2)
    z = z + 0.01 * torch.randn(z.shape, generator=torch.Generator().manual_seed(6))
    codes = {}
    for micro in (ROWS, 2):
        torch.manual_seed(0)
        quantizer = vq(update, codes=8, start=KMeans()).build(GRID)
        assert not quantizer.ready
        train(quantizer, 1, lambda _: z, micro)
        assert quantizer.ready
        codes[micro] = quantizer.codebook.weight.detach().clone()
    assert torch.equal(codes[ROWS], codes[2]), "the start depends on the micro-batch"
    quantizer.eval()
    assert len(quantizer.encode(z).unique()) == 8
    length = codes[2].norm(dim=1)
    assert bool((length < 1.001).all()) == (isinstance(update, EMA) and update.length == "unit")
    train(quantizer, 1, lambda _: 0 * z)  # started: no second start
    assert len(quantizer.encode(z).unique()) == 8


def test_with_fewer_vectors_than_codes_the_others_wait_for_revival() -> None:
    quantizer = vq(EMA(), codes=64, start=KMeans(), revival=Revival(patience=5, threshold=0.3)).build(GRID)
    z = latents("vq", rows=2)
    train(quantizer, 1, lambda _: z)
    code = quantizer.codebook.weight
    distance = (z.permute(0, 2, 3, 1).flatten(0, 2)[:, None] - code).abs().amax(2).amin(1)
    assert float(distance.max()) < 1e-6, "32 vectors are 32 of the 64 codes"
    train(quantizer, 40, lambda step: latents("vq", rows=2, seed=step % 10))
    used = quantizer.encode(torch.cat([latents("vq", rows=2, seed=s) for s in range(10)])).unique()
    assert len(used) > 56


def test_laplace_smoothing_keeps_the_total_and_spares_unused_codes() -> None:
    book = Codebook.Config(codes=3, dim=1, update=EMA(decay=0.5, smoothing=1.0)).build()
    book.weight.copy_(torch.tensor([[0.0], [10.0], [70.0]]))
    book.train()
    z = torch.tensor([[[1.0], [3.0], [11.0]]])
    book.observe([(z, book.nearest(z[0])[None])], Draws.whole(0, 0, 1))
    book.after_step(Draws.whole(0, 0, 1))
    # counts 1, 0.5, 0 of 1.5 become (n + 1) / (1.5 + 3) * 1.5 = 2/3, 1/2
    torch.testing.assert_close(book.weight, torch.tensor([[2 / (2 / 3)], [5.5 / 0.5], [70.0]]))


@pytest.mark.parametrize("seed", range(5))
def test_each_stage_lowers_the_error_of_what_the_codebooks_started_from(seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = Residual.Config(stage=vq(EMA(decay=0.999), codes=6, start=KMeans()), stages=4).build(GRID)
    z = latents("vq", seed=seed)
    started = []
    for _ in range(4):
        train(quantizer, 1, lambda _: z)
        started.append([stage.ready for stage in quantizer.stages])
    assert started == [[i <= step for i in range(4)] for step in range(4)], "a stage starts one step after the stage before it"
    sums = quantizer.partial(quantizer.encode(z))
    errors = [float(z.square().mean()), *(float((z - s).square().mean()) for s in sums)]
    assert all(b <= a for a, b in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.35 * errors[0]


def test_each_level_of_residual_fsq_bounds_the_error() -> None:
    quantizer = residual_fsq((5, 4, 3), 3).build(GRID)
    z = latents("residual_fsq").clamp(-0.7, 0.7)
    inside = quantizer._enter(z)
    for i, s in enumerate(quantizer.partial(quantizer.encode(z))):
        step = 2 / (quantizer.stages[0].levels - 1) / quantizer.stages[0].levels.float() ** i  # type: ignore[union-attr, operator]
        assert bool(((inside - s).abs() <= step[:, None, None] / 2 + 1e-6).all())


def test_how_many_codes_learn_from_a_step() -> None:
    """VQ: those that were chosen.  SimVQ and IBQ: all of them."""
    z = latents("ibq")[:1]

    def moved(quantizer: Quantizer, codes: Any) -> float:
        before = codes().detach().clone()
        loss = quantizer(z).z.square().sum() + sum(quantizer(z).losses.values())
        for p, g in zip(quantizer.parameters(), torch.autograd.grad(loss, list(quantizer.parameters()))):
            p.data -= g
        return float((codes() != before).any(1).float().mean())

    plain, sim, ibq = vq(codes=40, dim=6).build(GRID), build("simvq"), build("ibq")
    assert moved(plain, lambda: plain.codebook.weight) <= 16 / 40
    assert moved(sim, lambda: sim.codebook(sim.table)) == 1
    assert moved(ibq, lambda: ibq.codebook) == 1


def test_each_scale_of_bits_lowers_the_error() -> None:
    quantizer = MultiScaleBSQ.Config(bits=5, scales=(1, 2, 3, 4)).build((4, 4))
    base = torch.randn(ROWS, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    z = 3 * base + latents("multiscale_bsq") * 2
    error = quantizer(z).stats["residual"]
    assert bool((torch.cat([z.square().mean()[None], error]).diff() < 0).all()), error


def test_teacher_inputs_of_bits_equal_incremental_inputs() -> None:
    quantizer = build("multiscale_bsq")
    assert isinstance(quantizer, MultiScaleBSQ)
    bits = torch.randint(2, (3, 21, 5))
    check_inputs(quantizer, bits)


def test_self_correction_teaches_the_bits_that_mend_the_flipped_sum() -> None:
    quantizer = build("multiscale_bsq")
    assert isinstance(quantizer, MultiScaleBSQ)
    z = 3 * latents("multiscale_bsq")
    bits = quantizer.encode(z)
    plain = corrected(quantizer, z, [])
    assert torch.equal(plain[1], bits)
    assert torch.equal(plain[0], bits)
    flips = SelfCorrection(strength=1.0, scales=2).draw(quantizer, Draws.whole(0, 3, ROWS))
    assert [f.shape for f in flips] == [(ROWS, 1, 5), (ROWS, 4, 5)]
    given, targets = corrected(quantizer, z, flips)
    told = torch.cat([targets[:, :1] ^ flips[0], targets[:, 1:5] ^ flips[1], targets[:, 5:]], 1)
    assert torch.equal(given, told)
    assert torch.equal(targets[:, :1], bits[:, :1]), "the first scale has nothing to mend"
    rest = z - quantizer.partial(told)[1]
    assert torch.equal(targets[:, 5:], (quantizer.direction(rest, 2) > 0).long())
    assert not torch.equal(targets, bits)


def test_flips_are_drawn_for_the_global_batch_and_by_strength() -> None:
    quantizer = build("multiscale_bsq")
    assert isinstance(quantizer, MultiScaleBSQ)
    whole = SelfCorrection(scales=3).draw(quantizer, Draws.whole(7, 2, 8))
    part = SelfCorrection(scales=3).draw(quantizer, Draws(7, 2, 1, 2, 5, 8))
    assert all(torch.equal(w[2:5], p) for w, p in zip(whole, part))
    share = torch.tensor(
        [
            [f.float().mean() for f in SelfCorrection(strength=0.3, scales=3).draw(quantizer, Draws.whole(0, step, 64))]
            for step in range(300)
        ]
    )
    assert abs(float(share.mean()) - 0.15) < 0.02
    assert float(share[:, 2].max()) < 0.36
    assert not any(bool(f.any()) for f in SelfCorrection(strength=0.0).draw(quantizer, Draws.whole(0, 0, 64)))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: EMA(smoothing=-1.0), "smoothing=-1.0"),
        (lambda: KMeans(iterations=0), "iterations=0"),
        (lambda: FSQ.Config(levels=(8, 1)), r"levels=\[8, 1\]"),
        (lambda: FSQ.Config(levels=(64,) * 5), "2\\^24"),
        (lambda: LFQ.Config(bits=6, factors=(2, 2)), r"factors=\[2, 2\]"),
        (lambda: BSQ.Config(bits=30), "bits=30"),
        (lambda: LFQ.Config(beta=-1.0), "beta=-1.0"),
        (lambda: Entropy(temperature=0.0), "temperature=0.0"),
        (lambda: Entropy(span=30), "span=30"),
        (lambda: SimVQ.Config(codes=1, dim=4), "codes=1"),
        (lambda: IBQ.Config(codes=8, dim=0), "dim=0"),
        (lambda: Residual.Config(stage=vq(), stages=0), "stages=0"),
        (lambda: Residual.Config(stage=vq(), shrink=(2.0,)), "shrink"),
        (lambda: Residual.Config(stage=ALL["multiscale_bsq"]).layout((4, 4)), "MultiScaleBSQ"),
        (lambda: Grouped.Config(part=vq(), groups=0), "groups=0"),
        (lambda: MultiScaleBSQ.Config(scales=(1, 3, 2)), "scales"),
        (lambda: MultiScaleBSQ.Config(scales=(1, 2)).build((4, 4)), "4x4"),
        (lambda: SelfCorrection(strength=1.5), "strength=1.5"),
    ],
)
def test_impossible_values_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()

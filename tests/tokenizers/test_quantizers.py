"""Laws of the quantizers: lookup, gradients, both forms of VAR's inputs, and one codebook for any number of workers."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.collectives import all_reduce_sum, world_size
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Learned, Revival, perplexity
from tokenloom.models.parts.quantizers.multiscale import MultiScale, phi_of_scale
from tokenloom.models.parts.quantizers.vq import VQ

Quantizer = VQ | MultiScale
GRID, DIM, ROWS = 4, 6, 12


def codebook(update: Learned | EMA = EMA(decay=0.9), codes: int = 24, **more: Any) -> Codebook.Config:  # noqa: B008 - frozen
    return Codebook.Config(codes=codes, dim=DIM, update=update, revival=Revival(patience=3, threshold=0.3), **more)


CONFIGS: dict[str, VQ.Config | MultiScale.Config] = {
    "vq": VQ.Config(codebook=codebook()),
    "vq_cosine": VQ.Config(codebook=codebook(metric="cosine")),
    "vq_learned": VQ.Config(codebook=codebook(Learned()), entropy=0.1),
    "multiscale": MultiScale.Config(codebook=codebook(), scales=(1, 2, 3, 4)),
    "multiscale_learned": MultiScale.Config(codebook=codebook(Learned()), scales=(1, 2, 4), phis=3),
    "multiscale_plain": MultiScale.Config(codebook=codebook(), scales=(2, 4), ratio=0.0),
}


@pytest.fixture(params=CONFIGS)
def quantizer(request: pytest.FixtureRequest) -> Quantizer:
    torch.manual_seed(1)
    built = CONFIGS[request.param].build((GRID, GRID))
    built.codebook.weight.data.normal_()
    return built


def latents(step: int, rows: int = ROWS) -> Tensor:
    """Smooth maps around ten centres, another set each step."""
    draw = torch.Generator().manual_seed(step)
    centre = torch.randn(10, DIM, generator=torch.Generator().manual_seed(99))[torch.randint(10, (rows,), generator=draw)]
    coarse = F.interpolate(torch.randn(rows, DIM, 2, 2, generator=draw), GRID, mode="bilinear")
    return centre[:, :, None, None] + 0.5 * coarse + 0.1 * torch.randn(rows, DIM, GRID, GRID, generator=draw)


def run(quantizer: Quantizer, steps: int, rank: int = 0, world: int = 1, micro: int = ROWS, dtype: torch.dtype = torch.float64) -> None:
    """Training steps of the codebook alone: this rank's share of each batch, in micro-batches; gradients as the mean of all."""
    quantizer.train()
    learned = [p for p in quantizer.parameters() if p.requires_grad]
    start, stop = rank * ROWS // world, (rank + 1) * ROWS // world
    for step in range(steps):
        gradients = [torch.zeros_like(p) for p in learned]
        for first in range(start, stop, micro):
            last = min(first + micro, stop)
            draws = Draws(0, step, steps, first, last, ROWS)
            losses = quantizer(latents(step)[first:last].to(dtype), draws).losses
            found = torch.autograd.grad(torch.stack(list(losses.values())).sum(), learned, allow_unused=True) if learned else []
            for total, gradient in zip(gradients, found):
                total += (last - first) / ROWS * (torch.zeros_like(total) if gradient is None else gradient)
        with torch.no_grad():
            for parameter, gradient in zip(learned, gradients):
                parameter -= 0.3 * all_reduce_sum(gradient)
        quantizer.after_step(Draws(0, step, steps, start, stop, ROWS))


def test_lookup_of_encoded_lookup_is_itself(quantizer: Quantizer) -> None:
    """A plain codebook's vectors are their own nearest; residual ids need not be, but code one latent the same way twice."""
    z = latents(0)
    ids = quantizer.encode(z)
    again = quantizer.encode(z.clone())
    assert torch.equal(ids, again)
    assert torch.equal(ids, quantizer.eval()(z).ids)
    torch.testing.assert_close(quantizer.lookup(ids), quantizer(z).z.detach(), atol=1e-5, rtol=1e-5)
    if isinstance(quantizer, VQ):
        assert torch.equal(quantizer.encode(quantizer.lookup(ids)), ids)


def test_search_finds_the_nearest_code() -> None:
    for metric in ("l2", "cosine"):
        book = Codebook.Config(codes=50, dim=5, metric=metric).build()  # type: ignore[arg-type]
        book.weight.data.normal_()
        z = torch.randn(40, 5)
        table = book.weight.detach()
        distance = torch.cdist(z, table) if metric == "l2" else -F.normalize(z, dim=1) @ F.normalize(table, dim=1).T
        assert torch.equal(book.nearest(z), distance.argmin(1))


def test_straight_through_gradient(quantizer: Quantizer) -> None:
    """d output / d input is the identity (on the sphere: that of the normalisation); the ids carry none."""
    z = latents(0).requires_grad_()
    weight = torch.randn(ROWS, DIM, GRID, GRID)
    gradient = torch.autograd.grad((quantizer(z).z * weight).sum(), z)[0]
    through = F.normalize(z, dim=1) if isinstance(quantizer, VQ) and quantizer.config.codebook.metric == "cosine" else z
    torch.testing.assert_close(gradient, torch.autograd.grad((through * weight).sum(), z)[0])


def test_losses_train_the_side_that_they_name(quantizer: Quantizer) -> None:
    z = latents(0).requires_grad_()
    losses = quantizer(z).losses
    table = quantizer.codebook.weight
    to_z = torch.autograd.grad(losses["commitment"], z, retain_graph=True)[0]
    assert float(to_z.abs().sum()) > 0
    if table.requires_grad:
        assert torch.autograd.grad(losses["commitment"], table, allow_unused=True, retain_graph=True)[0] is None
        assert float(torch.autograd.grad(losses["codebook"], table, retain_graph=True)[0].abs().sum()) > 0
    if "codebook" in losses:
        assert torch.autograd.grad(losses["codebook"], z, allow_unused=True)[0] is None


def test_half_precision_does_not_change_the_ids(quantizer: Quantizer) -> None:
    z = latents(0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(z)
    assert torch.equal(half.ids, quantizer(z.float()).ids)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("multiscale")])
def test_teacher_inputs_equal_incremental_inputs(name: str) -> None:
    torch.manual_seed(0)
    quantizer = CONFIGS[name].build((GRID, GRID))
    assert isinstance(quantizer, MultiScale)
    quantizer.codebook.weight.data.normal_()
    length = sum(h * w for h, w in quantizer.scales)
    ids = torch.randint(24, (3, length))
    taught = quantizer.next_inputs(ids)
    assert taught.shape == (3, length - math.prod(quantizer.scales[0]), DIM)
    f_hat, inputs = quantizer.start(3), []
    for scale, part in enumerate(quantizer.split(ids)):
        f_hat, following = quantizer.accumulate(f_hat, scale, part)
        inputs.append(following)
    torch.testing.assert_close(torch.cat(inputs[:-1], 1), taught)
    torch.testing.assert_close(f_hat, quantizer.lookup(ids))
    torch.testing.assert_close(inputs[-1], f_hat.flatten(2).transpose(1, 2))


def test_one_scale_is_all_a_generator_starts_with() -> None:
    quantizer = MultiScale.Config(codebook=codebook(), scales=(4,)).build((4, 4))
    assert quantizer.next_inputs(torch.zeros(2, 16, dtype=torch.long)).shape == (2, 0, DIM)


def test_each_scale_lowers_the_error() -> None:
    torch.manual_seed(0)
    quantizer = MultiScale.Config(codebook=codebook(codes=64), scales=(1, 2, 3, 4)).build((4, 4)).double()
    run(quantizer, 60)
    error = quantizer.eval()(latents(1000).double()).stats["residual"]
    whole = latents(1000).square().mean()
    assert bool((error.diff() < 0).all()), error
    assert float(error[-1]) < 0.25 * float(whole), (error, whole)


def test_phi_is_chosen_by_the_nearest_tick() -> None:
    assert [phi_of_scale(s, 10, 4) for s in (0, 1, 3, 4, 5, 6, 8, 9)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [phi_of_scale(s, 4, 4) for s in range(4)] == [0, 1, 2, 3]
    assert [phi_of_scale(s, 5, 1) for s in range(5)] == [0] * 5
    assert [phi_of_scale(s, 3, 3) for s in range(3)] == [0, 1, 2]


def test_moving_average_is_the_mean_of_what_chose_the_code() -> None:
    book = Codebook.Config(codes=3, dim=2, update=EMA(decay=0.5)).build()
    book.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    book.train()
    z = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [11.0, 1.0]]])
    book.observe([(z, book.nearest(z[0])[None])], Draws.whole(0, 0, 1))
    book.after_step(Draws.whole(0, 0, 1))
    torch.testing.assert_close(book.weight, torch.tensor([[2.0, 0.0], [11.0, 1.0], [0.0, 10.0]]))
    z = torch.tensor([[[4.0, 0.0]]])
    book.observe([(z, book.nearest(z[0])[None])], Draws.whole(0, 1, 1))
    book.after_step(Draws.whole(0, 1, 1))
    # (0.5 * (1 + 3) + 4) / (0.5 * 2 + 1)
    torch.testing.assert_close(book.weight[0], torch.tensor([3.0, 0.0]))


@pytest.mark.parametrize("name", ["vq", "vq_learned", "multiscale"])
def test_dead_codes_come_back_as_vectors_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    quantizer = CONFIGS[name].build((GRID, GRID))
    quantizer.codebook.weight.data.copy_(100 + torch.randn(24, DIM))  # far from every vector: one code takes all
    quantizer.codebook.weight.data[0] = 0
    assert len(quantizer.encode(latents(0)).unique()) == 1
    run(quantizer, 12, dtype=torch.float32)
    assert len(quantizer.encode(torch.cat([latents(s) for s in range(5)])).unique()) > 18


def test_nothing_is_revived_late_or_within_patience() -> None:
    book = Codebook.Config(codes=4, dim=2, revival=Revival(patience=5, until=0.5)).build()
    book.train()
    z = torch.ones(1, 3, 2)
    revived = []
    for step in range(20):
        book.observe([(z, torch.zeros(1, 3, dtype=torch.long))], Draws.whole(0, step, 1, steps=20))
        revived.append(book.after_step(Draws.whole(0, step, 1, steps=20))["revived"])
    assert revived == [3.0, 0, 0, 0, 0, 3.0] + [0] * 14


def test_evaluation_leaves_no_trace(quantizer: Quantizer) -> None:
    before = {k: v.clone() for k, v in quantizer.named_buffers()}
    quantizer.eval()(latents(0), Draws.whole(0, 0, ROWS))
    quantizer.train()(latents(0), None)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.named_buffers())


def test_use_and_perplexity_per_scale() -> None:
    torch.manual_seed(0)
    quantizer = MultiScale.Config(codebook=codebook(), scales=(1, 4)).build((4, 4))
    quantizer.train()
    quantizer(latents(0), Draws.whole(0, 0, ROWS))
    metrics = quantizer.after_step(Draws.whole(0, 0, ROWS))
    usage = quantizer.eval()(latents(0)).stats["usage"]
    assert usage.shape == (2, 24)
    assert usage.sum(1).tolist() == [ROWS, ROWS * 16]
    assert {"use_1x1", "use_4x4", "use", "perplexity_1x1", "perplexity_4x4", "perplexity", "revived"} == set(metrics)
    assert 1 <= metrics["perplexity_1x1"] <= ROWS
    torch.testing.assert_close(perplexity(torch.tensor([[4.0, 4, 0], [9, 0, 0], [0, 0, 0]])), torch.tensor([2.0, 1, 0]))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Codebook.Config(codes=1, dim=4), "codes=1"),
        (lambda: Codebook.Config(codes=8, dim=0), "dim=0"),
        (lambda: EMA(decay=1.0), "decay=1.0"),
        (lambda: Revival(threshold=2.0), "threshold=2.0"),
        (lambda: MultiScale.Config(codebook=codebook(), scales=()), "scales"),
        (lambda: MultiScale.Config(codebook=codebook(), scales=(1, 3, 2)), "scales"),
        (lambda: MultiScale.Config(codebook=codebook(), scales=(1, 2), ratio=2.0), "ratio=2.0"),
        (lambda: MultiScale.Config(codebook=codebook(), scales=(1, 2, 3)).layout((4, 4)), "4x4"),
        (lambda: VQ.Config(codebook=codebook(), beta=-1.0), "beta=-1.0"),
    ],
)
def test_impossible_values_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()


# --- several workers ----------------------------------------------------------------------------------------------


def worker(rank: int, world: int, folder: str, names: list[str], steps: int) -> None:
    """One real process of a gloo group: trains each quantizer on its share and saves what it ends with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        assert world_size() == world
        for name in names:
            torch.manual_seed(5)
            quantizer = CONFIGS[name].build((GRID, GRID)).double()
            # one rank takes its share whole, the others in pieces: the collectives must still match
            run(quantizer, steps, rank, world, micro=ROWS if rank == 0 else 2)
            save_file(quantizer.state_dict(), f"{folder}/{name}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.long), 3])
def test_workers_keep_one_codebook_equal_to_a_single_process(world: int, tmp_path: Path) -> None:
    names, steps = ["vq", "vq_cosine", "multiscale", "multiscale_learned"], 40
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(r, world, str(tmp_path), names, steps)) for r in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    hung = [p for p in processes if p.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "a collective waits for ever"
    assert [p.exitcode for p in processes] == [0] * world
    for name in names:
        torch.manual_seed(5)
        alone = CONFIGS[name].build((GRID, GRID)).double()
        run(alone, steps)
        states = [load_file(tmp_path / f"{name}-{r}.safetensors") for r in range(world)]
        for key, value in alone.state_dict().items():
            assert all(torch.equal(states[0][key], s[key]) for s in states[1:]), (name, key)
            torch.testing.assert_close(states[0][key], value, atol=1e-9, rtol=1e-9, msg=lambda m, n=name, k=key: f"{n} {k}: {m}")
        assert int((alone.codebook.born >= 0).sum()) > 3, "no code was revived: the test shows nothing"

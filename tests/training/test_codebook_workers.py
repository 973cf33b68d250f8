"""Codebooks over several workers: k-means start, averages, revival and stages end alike on all ranks, and as in a single process."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.collectives import world_size
from tokenloom.models.parts.quantizers.base import Quantizer
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.zoo.tokenizers.pq.quantizer import Grouped
from tokenloom.models.zoo.tokenizers.rvq.quantizer import Residual

ROWS, DIM, GRID, STEPS, WORLD = 10, 4, (3, 3), 200, 2


def stage(metric: str = "l2", dim: int = DIM, codes: int = 20) -> VQ.Config:
    """Moving averages from a k-means start, with revival."""
    update = EMA(decay=0.9, smoothing=1e-5, length="unit" if metric == "cosine" else "free")
    book = Codebook.Config(
        codes=codes,
        dim=dim,
        metric=metric,
        update=update,
        start=KMeans(samples=3),
        revival=Revival(patience=4, threshold=0.3),  # type: ignore[arg-type]
    )
    return VQ.Config(codebook=book)


CONFIGS: dict[str, Quantizer.Config] = {
    "ema": stage(),
    "cosine": stage("cosine"),
    "rvq": Residual.Config(stage=stage(codes=8), stages=3),
    "pq": Grouped.Config(part=stage(dim=2, codes=8), groups=2),
}


def latents(step: int) -> Tensor:
    """Vectors around centres that wander, so that codes die and are revived."""
    draw = torch.Generator().manual_seed(step)
    centre = torch.randn(6, DIM, generator=torch.Generator().manual_seed(1000 + step // 25), dtype=torch.float64)
    which = torch.randint(6, (ROWS, *GRID), generator=draw)
    noise = torch.randn(ROWS, *GRID, DIM, generator=draw, dtype=torch.float64)
    return (centre[which] + 0.2 * noise).permute(0, 3, 1, 2)


def run(name: str, rank: int, world: int, micro: int) -> dict[str, Tensor]:
    """This rank's share of every batch, in micro-batches; the state at the end, and how many codes were revived."""
    torch.manual_seed(5)
    quantizer = CONFIGS[name].build(GRID).double().train()
    start, stop = rank * ROWS // world, (rank + 1) * ROWS // world
    revived = 0.0
    for step in range(STEPS):
        z = latents(step)
        for first in range(start, stop, micro):
            last = min(first + micro, stop)
            quantizer(z[first:last], Draws(0, step, STEPS, first, last, ROWS))
        metrics = quantizer.after_step(Draws(0, step, STEPS, start, stop, ROWS))
        revived += sum(v for k, v in metrics.items() if k.startswith("revived"))
    assert quantizer.ready
    return quantizer.state_dict() | {"revived": torch.tensor(revived)}


def worker(rank: int, folder: str) -> None:
    """One real process of a gloo group."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    try:
        assert world_size() == WORLD
        for name in CONFIGS:
            # one rank takes its share whole, the other in pieces: the collectives must still match
            save_file(run(name, rank, WORLD, ROWS if rank == 0 else 2), f"{folder}/{name}-{rank}.safetensors")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes end with."""
    path = tmp_path_factory.mktemp("workers")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, str(path))) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    hung = [p for p in processes if p.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "a collective waits for ever"
    assert [p.exitcode for p in processes] == [0] * WORLD
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_two_workers_end_alike_and_as_one_process(name: str, folder: Path) -> None:
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in range(WORLD))
    alone = run(name, 0, 1, ROWS)
    assert set(first) == set(alone)
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, atol=1e-9, rtol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    assert float(alone["revived"]) > 3, "no code was revived: the test shows nothing"

"""The training loop around a model that costs nothing, against a bare loop over the same tensors: 2 and 100 of them.

Ours is a step of ``tasks/training/train_loop.py`` with all that it does: rows by the data order, draws, reduction, clipping, AdamW,
EMA, metrics.  The bare loop gathers rows, computes the same loss and does ``zero_grad``, ``backward``, ``clip_grad_norm_``,
``AdamW`` and ``loss.item()``, without EMA.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.rows import image_rows
from benchmarks.speed.timing import compare
from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import Config as BaseConfig
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch, Method
from tokenloom.models.core.settings import ExecutionSettings, OptimizerSettings, TrainSettings
from tokenloom.tasks.data.loader import Loader
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.job import TrainJob
from tokenloom.tasks.training.parallel import Group
from tokenloom.tasks.training.train_loop import _Run

ROWS, SIZE = 32, 4


class Trivial(Method):
    """Linear maps, one after the other, that give back what they get."""

    phases = ("train",)

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig, tag="bench.trivial"):
        """``depth`` maps, two tensors each."""

        depth: int = 1

        def build(self, signal: signals.SignalSpec, **_: Any) -> Trivial:
            return Trivial(self.depth, math.prod(signal.shape) * signal.channels)

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

    def losses(self, batch: Batch, phase: str, draws: Draws) -> dict[str, Tensor]:
        assert batch.signal is not None
        x = batch.signal.flatten(1)
        return {"loss": (self.maps(x) - x).square().mean()}


def trivial(depth: int = 1) -> Trivial.Config:
    """The recipe."""
    return Trivial.Config(depth=depth)


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios by the number of tensors."""
    registry.names()
    registry.register("trivial", kind="density", paper="-", tiny={})(trivial)
    found: dict[str, Any] = {}
    for tensors in (2, 100):
        with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
            store = Store(str(Path(folder) / "store"), Path(folder) / "root")
            times = compare(*steps(store, tensors // 2), turns=11 if quick else 31, inner=200)
        found[f"{tensors} tensors"] = times.row()
        print(f"{tensors} tensors: {times.row()}", flush=True)
    return found


def steps(store: Store, depth: int) -> tuple[Any, Any]:
    """A step of ours and a bare one."""
    rows = image_rows(store, 2048, SIZE)
    settings = TrainSettings(steps=10**6, batch=ROWS, optimizer=OptimizerSettings(lr=1e-5, clip=1.0))
    spec = ModelSpec("density", "trivial", {"depth": depth}, {}, {"signal": signals.image(SIZE, 1).to_dict()})
    execution = ExecutionSettings(workers=1, device="cpu")
    job = TrainJob(spec.to_dict(), settings, execution, rows, None, store.uri, "density/bench-0", str(store.root), None, "0")
    run = _Run(job, Group())
    bare = Trivial(depth, SIZE * SIZE)
    images = Loader(rows, store.cache).get(np.arange(len(rows))).signal
    assert images is not None
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-5)

    def official() -> None:
        batch = images[torch.randint(len(images), (ROWS,))]
        optimizer.zero_grad(set_to_none=True)
        x = batch.flatten(1)
        loss = (bare.maps(x) - x).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return lambda: run.train_step(False), official

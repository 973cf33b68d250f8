"""Batches of 256 x 256 images and of tokens from the node's cache, against a bare gather of the same rows from one array in memory.

Both end with what a training step is given, on the processor; rows are in the order of training.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.rows import image_rows
from benchmarks.speed.timing import compare
from tokenloom.tasks.data.loader import Loader, indices
from tokenloom.tasks.store.artifacts import Store

BATCH = 64


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios by size of image."""
    found: dict[str, Any] = {}
    for size, channels, rows in ((32, 1, 4096), (256, 3, 256 if quick else 1024)):
        with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
            store = Store(str(Path(folder) / "store"), Path(folder) / "root")
            loader = Loader(image_rows(store, rows, size, channels, shards=4), store.cache)
            whole = loader.pixels(np.arange(rows))[0]
            step = [0, 0]

            def ours(loader: Loader = loader, step: list[int] = step) -> object:
                step[0] += 1
                return loader.get(indices(0, step[0], BATCH, len(loader)))

            def bare(whole: np.ndarray = whole, step: list[int] = step) -> object:
                step[1] += 1
                idx = indices(0, step[1], BATCH, len(whole))
                return torch.from_numpy(whole[idx]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

            assert torch.allclose(ours().signal, bare(), atol=1e-6)  # type: ignore[attr-defined, arg-type]
            times = compare(ours, bare, turns=9 if quick else 31, inner=20 if size == 32 else 2)
        label = f"{size} x {size} x {channels}"
        found[label] = times.row()
        print(f"{label}: {times.row()}", flush=True)
    return found

"""Batches as a step takes them, against the least that makes the same bytes: a bare loop, or a gather from one array.

JPEG files are decoded, cropped and mirrored on one thread, and handed over as bytes, by both sides; decoded images are gathered as bytes
and as float32 signals; tokens of 1,251 shards are gathered with their labels, by the bare side from one memory map.  Rows are in the order
of training, and drawn before anything is timed.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.speed.rows import image_rows, jpeg_rows, token_rows
from benchmarks.speed.timing import Compared, compare
from tokenloom.models.core.augmentation import Augmentation, RandomCrop
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.data.held import Encoded, Flat
from tokenloom.tasks.data.loader import Loader, indices
from tokenloom.tasks.modalities.image.augmentation import DRAWS
from tokenloom.tasks.store.artifacts import Store

BATCH = 64
SHARDS = 1251  # of ImageNet at 1,024 rows each


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios by what is loaded."""
    found: dict[str, Any] = {}
    for name, bench in (("jpeg", _jpeg), ("decoded", _decoded), ("tokens", _tokens)):
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
            for label, times in bench(Store(str(Path(folder) / "store"), Path(folder) / "root"), quick):
                found[label] = times.row()
                print(f"{label}: {times.row()}", flush=True)
    return found


def _jpeg(store: Store, quick: bool) -> Iterator[tuple[str, Compared]]:
    rows, files = jpeg_rows(store, 128 if quick else 512, 256, 288, shards=4)
    varied = Augmentation(random_crop=RandomCrop(scale=(1.125, 1.125)), flip=0.5)
    loader = Loader(rows, store.cache, ExecutionSettings(decoders=1, decoded_gb=0), varied)
    assert isinstance(loader.held, Encoded)
    step = [0, 0]

    def ours() -> object:
        step[0] += 1
        idx = indices(0, step[0], BATCH, len(loader))
        return loader.stored(idx, Draws.whole(0, step[0], BATCH, stream="augment")).signal

    def bare() -> object:
        step[1] += 1
        made = np.empty((BATCH, 256, 256, 3), np.uint8)
        u_BN = Draws.whole(0, step[1], BATCH, stream="augment").uniform(DRAWS).numpy()
        for place, row in enumerate(indices(0, step[1], BATCH, len(files)).tolist()):
            top, left = int(u_BN[place, 1] * 33), int(u_BN[place, 2] * 33)
            with Image.open(io.BytesIO(files[row])) as opened:
                image = np.asarray(opened)[top : top + 256, left : left + 256]
            made[place] = image[:, ::-1] if u_BN[place, 32] < 0.5 else image
        return torch.from_numpy(made)

    assert torch.equal(ours(), bare())  # type: ignore[arg-type]
    yield "JPEG of 288 x 288, crop to 256 and flip", compare(ours, bare, turns=9 if quick else 31)


def _decoded(store: Store, quick: bool) -> Iterator[tuple[str, Compared]]:
    for size, channels, rows in ((32, 1, 4096), (256, 3, 256 if quick else 1024)):
        loader = Loader(image_rows(store, rows, size, channels, shards=4), store.cache)
        assert isinstance(loader.held, Flat)
        whole = loader.items(np.arange(rows))[0].copy()
        order = [indices(0, step, BATCH, rows) for step in range(64)]
        inner = 50 if size == 32 else 4
        for label, convert in (("bytes", False), ("as float32", True)):
            step = [0, 0]

            def ours(loader: Loader = loader, step: list[int] = step, order: Any = order, convert: bool = convert) -> object:
                step[0] += 1
                idx = order[step[0] % 64]
                return (loader.get(idx) if convert else loader.stored(idx)).signal

            def bare(whole: np.ndarray = whole, step: list[int] = step, order: Any = order, convert: bool = convert) -> object:
                step[1] += 1
                image = torch.from_numpy(whole[order[step[1] % 64]])
                return image.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous() if convert else image

            assert torch.equal(ours(), bare())  # type: ignore[arg-type]
            yield f"decoded {size} x {size} x {channels}, {label}", compare(ours, bare, turns=9 if quick else 31, inner=inner)


def _tokens(store: Store, quick: bool) -> Iterator[tuple[str, Compared]]:
    rows = token_rows(store, SHARDS, 32 if quick else 1024)
    loader, batch, step = Loader(rows, store.cache), 256, [0, 0]
    path = store.root / "flat.npy"
    np.save(path, loader.items(np.arange(len(loader)))[0])
    flat, label_N = np.load(path, mmap_mode="r"), np.arange(len(loader), dtype=np.int64) % 10
    order = [indices(0, number, batch, len(loader)) for number in range(64)]

    def ours() -> object:
        step[0] += 1
        tokens = loader.get(order[step[0] % 64]).tokens
        assert tokens is not None
        return tokens.data

    def bare() -> object:
        step[1] += 1
        idx = order[step[1] % 64]
        return (torch.from_numpy(np.asarray(flat[idx])), torch.from_numpy(label_N[idx]))[0]

    assert torch.equal(ours(), bare())  # type: ignore[arg-type]
    yield f"256 tokens of {SHARDS:,} shards, batch 256", compare(ours, bare, turns=15 if quick else 61, inner=100)

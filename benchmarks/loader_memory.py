"""Memory and waiting of a long feed: ``python -m benchmarks.loader_memory [--batches N] [--keep]``.

JPEG files are cropped and mirrored on their way from a node's cache that holds a third of them, so that shards come and go all the time.
Counted is the memory of the process that belongs to no file (RssAnon); what is mapped from files is the kernel's to drop.  With
``--keep`` the figures go into ``benchmarks/results/loader_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.speed.rows import jpeg_rows
from benchmarks.speed.timing import machine
from tokenloom.models.core.augmentation import Augmentation, RandomCrop
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.data.feed import Feed
from tokenloom.tasks.data.loader import Loader
from tokenloom.tasks.store.artifacts import Store

RESULTS = Path(__file__).parent / "results" / "loader_memory.json"
BATCH, ROWS, SHARDS = 8, 960, 24


def anonymous() -> int:
    """Bytes of this process's memory that belong to no file."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None, "this kernel does not tell"
    return 1024 * int(found[1])


def measure(batches: int) -> dict[str, float | int]:
    """Growth of the peak from the first tenth to the whole, and what came with it."""
    augment = Augmentation(random_crop=RandomCrop(scale=(1.0, 1.25)), flip=0.5)
    with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
        store = Store(str(Path(folder) / "store"), Path(folder) / "root")
        rows, files = jpeg_rows(store, ROWS, 64, 64, SHARDS)
        limit = sum(map(len, files)) / 3
        execution = ExecutionSettings(decoders=2, decoded_gb=0, cache_gb=limit / 1e9)
        loader = Loader(rows, store.cache, execution, augment, lazy=True)
        feed = Feed(loader, TrainSettings(steps=batches, batch=BATCH, augment=augment, window=2), 0, BATCH, torch.device("cpu"))
        peaks, largest, began = list[int](), 0, time.perf_counter()
        for step in range(batches):
            feed.batch(step)
            largest = max(largest, anonymous())
            if (step + 1) % max(1, batches // 10) == 0:
                peaks.append(largest)
        seconds = time.perf_counter() - began
        feed.close()
        cached = sum(path.stat().st_size for path in store.cache.rglob("items.bin"))
    return {
        "batches": batches,
        "images_per_second": round(batches * BATCH / seconds),
        "peak_mb_of_the_first_tenth": round(peaks[0] / 1e6, 1),
        "peak_mb": round(peaks[-1] / 1e6, 1),
        "growth": round(peaks[-1] / peaks[0] - 1, 4),
        "cache_limit_mb": round(limit / 1e6, 2),
        "cache_mb_at_the_end": round(cached / 1e6, 2),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader_memory", description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--keep", action="store_true", help="keep the result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.batches)
    if given.keep:
        RESULTS.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

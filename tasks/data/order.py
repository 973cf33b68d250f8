"""Which rows each step takes: functions of (seed, step), so that there is no order to save."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import seed_of


def _permuted(rows: int, *key: int | str) -> np.ndarray:
    # Raw Philox numbers and a stable sort: unlike Generator.permutation both are fixed over numpy's versions.
    keys = np.random.Philox(key=seed_of(*key)).random_raw(rows)
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    return _permuted(rows, seed, "rows", epoch)


@lru_cache(maxsize=2)
def _windows(seed: int, epoch: int, shards: tuple[int, ...], window: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The shards of each window of an epoch, and the positions at which windows begin (with the end)."""
    order = _permuted(len(shards), seed, "shards", epoch)
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    sizes = np.asarray(shards)
    return parts, np.cumsum([0, *(int(sizes[part].sum()) for part in parts)])


@lru_cache(maxsize=4)
def _in_window(seed: int, epoch: int, shards: tuple[int, ...], window: int, number: int) -> np.ndarray:
    starts = np.cumsum([0, *shards])
    part = _windows(seed, epoch, shards, window)[0][number]
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in part.tolist()])
    return rows[_permuted(len(rows), seed, "rows", epoch, number)]


def indices(seed: int, step: int, batch: int, rows: int, shards: Sequence[int] = (), window: int = 0) -> np.ndarray:
    """Rows of the global batch of one step: (batch,) int64.

    Each epoch is a permutation keyed by (seed, epoch), epochs follow each other without a gap, so a batch may
    span two; no row is dropped or padded.  With a ``window`` shards are taken in a permuted order, and the rows of so many at a time
    are permuted among themselves: a step then needs no more than a window of ``shards`` (their rows) on the node.
    """
    if rows < 1 or batch < 1 or step < 0:
        raise ConfigError(f"step={step}, batch={batch}, rows={rows}: needs at least one row and a positive batch")
    position = step * batch + np.arange(batch, dtype=np.int64)
    epoch, within = position // rows, position % rows
    chosen = np.empty(batch, np.int64)
    sizes = tuple(shards)
    for each in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == each
        if not 0 < window < len(sizes):
            chosen[here] = _permutation(seed, each, rows)[within[here]]
            continue
        _, begins = _windows(seed, each, sizes, window)
        of = np.searchsorted(begins, within[here], side="right") - 1
        found = np.empty(len(of), np.int64)
        for number in np.unique(of).tolist():
            mine = of == number
            found[mine] = _in_window(seed, each, sizes, window, number)[within[here][mine] - begins[number]]
        chosen[here] = found
    return chosen


def share(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part (start, stop) of a global batch that a rank works on; sizes differ by at most one."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank}, world={world}: needs 0 <= rank < world")
    return batch * rank // world, batch * (rank + 1) // world

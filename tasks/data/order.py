"""Which rows each step takes: functions of (seed, step), so that there is no order to save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import seed_of


def _permuted(rows: int, *key: int | str) -> np.ndarray:
    # Raw Philox numbers and a stable sort: unlike Generator.permutation both are fixed over numpy's versions.
    keys = np.random.Philox(key=seed_of(*key)).random_raw(rows)
    order = np.argsort(keys, kind="stable")
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Stretch:
    """Rows that are drawn from on their own: how many, the sizes of the blocks in which they lie, and how often they are drawn.

    ``weight`` is the share of the draws, among those of all stretches.
    """

    rows: int
    blocks: tuple[int, ...] = ()
    weight: float = 1.0


#: Rows after which each stretch of a blend has had its share of the draws, to the row.
BALANCE = 4096


@cache
def _permutations(number: int) -> Callable[[int, int, int], np.ndarray]:
    """The permutation of an epoch of the stretch of this number, the last two of which are kept."""
    return lru_cache(maxsize=2)(lambda seed, epoch, rows: _permuted(rows, *_key(seed, number), "rows", epoch))


def _key(seed: int, number: int) -> tuple[int | str, ...]:
    return (seed, "stretch", number) if number else (seed,)


@lru_cache(maxsize=16)
def _windows(seed: int, number: int, epoch: int, blocks: tuple[int, ...], window: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The blocks of each window of an epoch, and the positions at which windows begin (with the end)."""
    order = _permuted(len(blocks), *_key(seed, number), "shards", epoch)
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    sizes = np.asarray(blocks)
    return parts, np.cumsum([0, *(int(sizes[part].sum()) for part in parts)])


@lru_cache(maxsize=16)
def _in_window(seed: int, number: int, epoch: int, blocks: tuple[int, ...], window: int, place: int) -> np.ndarray:
    starts = np.cumsum([0, *blocks])
    part = _windows(seed, number, epoch, blocks, window)[0][place]
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in part.tolist()])
    return rows[_permuted(len(rows), *_key(seed, number), "rows", epoch, place)]


def _drawn(seed: int, number: int, position: np.ndarray, stretch: Stretch, window: int) -> np.ndarray:
    """Rows of a stretch at positions of its endless sequence of epochs, each of which is a permutation."""
    epoch, within = position // stretch.rows, position % stretch.rows
    chosen = np.empty(len(position), np.int64)
    for each in np.unique(epoch).tolist():
        here = epoch == each
        if not 0 < window < len(stretch.blocks):
            chosen[here] = _permutations(number)(seed, each, stretch.rows)[within[here]]
            continue
        _, begins = _windows(seed, number, each, stretch.blocks, window)
        of = np.searchsorted(begins, within[here], side="right") - 1
        found = np.empty(len(of), np.int64)
        for place in np.unique(of).tolist():
            mine = of == place
            found[mine] = _in_window(seed, number, each, stretch.blocks, window, place)[within[here][mine] - begins[place]]
        chosen[here] = found
    return chosen


@lru_cache(maxsize=4)
def _turns(seed: int, turn: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Whose each of the ``BALANCE`` draws of a turn is, and how many draws each stretch has had before the turn."""
    ends = np.cumsum(weights) / np.sum(weights)
    ends[-1] = 1.0
    before, after = (np.diff([0, *np.floor(number * BALANCE * ends).astype(np.int64)]) for number in (turn, turn + 1))
    owner = np.repeat(np.arange(len(weights)), after - before)
    return owner[_permuted(BALANCE, seed, "turns", turn)], before


def indices(
    seed: int, step: int, batch: int, rows: int, shards: Sequence[int] = (), window: int = 0, stretches: Sequence[Stretch] = ()
) -> np.ndarray:
    """Rows of the global batch of one step: (batch,) int64.

    Each epoch is a permutation keyed by (seed, epoch), epochs follow each other without a gap, so a batch may
    span two; no row is dropped or padded.  With a ``window`` shards are taken in a permuted order, and the rows of so many at a time
    are permuted among themselves: a step then needs no more than a window of ``shards`` (their rows) on the node.

    Of several ``stretches``, which follow each other, each has epochs of its own and its share of every ``BALANCE`` draws; a stretch
    without rows has none.
    """
    if rows < 1 or batch < 1 or step < 0:
        raise ConfigError(f"step={step}, batch={batch}, rows={rows}: needs at least one row and a positive batch")
    position = step * batch + np.arange(batch, dtype=np.int64)
    several = [(number, each) for number, each in enumerate(stretches) if each.rows]
    if len(several) < 2:
        return _drawn(seed, 0, position, several[0][1] if several else Stretch(rows, tuple(shards)), window)
    chosen, weights = np.empty(batch, np.int64), tuple(each.weight for _, each in several)
    starts = np.cumsum([0, *(each.rows for each in stretches)])
    turn, within = position // BALANCE, position % BALANCE
    for each in np.unique(turn).tolist():
        owner, before = _turns(seed, each, weights)
        here = turn == each
        for place, (number, stretch) in enumerate(several):
            had = np.cumsum(owner == place)  # up to and with each draw of the turn
            mine = here & (owner[within] == place)
            if mine.any():
                at = before[place] + had[within[mine]] - 1
                chosen[mine] = starts[number] + _drawn(seed, number + 1, at, stretch, window)
    return chosen


def share(batch: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part (start, stop) of a global batch that a rank works on; sizes differ by at most one."""
    if not 0 <= rank < world:
        raise ConfigError(f"rank={rank}, world={world}: needs 0 <= rank < world")
    return batch * rank // world, batch * (rank + 1) // world

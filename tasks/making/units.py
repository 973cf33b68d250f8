"""The shards of a dataset made: by threads of this process, or by actors on any number of nodes; each finished one leaves a marker.

What is made waits in a folder of the store, so that whoever goes on, on whichever machine, finds it there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenloom.configs.schema import ClusterConfig
from tokenloom.tasks.data.matching import Unit
from tokenloom.tasks.making.shards import Making, Staging, make_shard
from tokenloom.tasks.runtime.cluster import node_root, worker_root
from tokenloom.tasks.runtime.errors import StepError
from tokenloom.tasks.runtime.pool import Call, shared_out
from tokenloom.tasks.runtime.progress import Report
from tokenloom.tasks.sources.noticed import Noticed, noticed, noticing
from tokenloom.tasks.store.artifacts import Store

#: Items from which on actors are worth their start.
LEAST = 8192
_THREADS = 8  # of an actor: items that are read at once while another one is decoded
_DEPTH = 2  # shards that an actor holds at once, one being read while the other is written


@dataclass
class Meter:
    """How fast items are read, for people."""

    total: int
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    seen: int = 0  # of them, those that an earlier run had made
    read: int = 0  # bytes
    rejected: int = 0

    def add(self, made: dict[str, Any], items: int) -> None:
        """Count one shard."""
        self.done += items
        self.rejected += len(made["rejects"])
        if made.get("left"):
            self.seen += items
        else:
            self.read += made.get("read", 0)

    def numbers(self) -> dict[str, float]:
        """Items and megabytes a second, and the minutes that are left at this speed."""
        seconds, mine = max(time.monotonic() - self.began, 1e-9), self.done - self.seen
        found = {"rejected": float(self.rejected)}
        if mine:
            found |= {"images_per_second": mine / seconds, "mb_per_second": self.read / 1e6 / seconds}
            found["minutes_left"] = (self.total - self.done) * seconds / mine / 60
        return found


def make_shards(
    units: Sequence[Unit], making: Making, store: Store, cluster: ClusterConfig, folder: str, report: Report, rejected: int = 0
) -> list[dict[str, Any]]:
    """What ``make_shard`` makes of each unit, in their order.

    Args:
        folder: of the store, where shards and markers wait.
        rejected: items that were rejected before.

    Raises:
        StepError: a bad item with ``on_bad: stop``, or files that a node cannot reach.
    """
    meter = Meter(sum(len(unit.items) for unit in units), rejected=rejected)
    made: list[dict[str, Any] | None] = [None] * len(units)

    def finished(number: int, one: dict[str, Any]) -> None:
        made[number] = one
        meter.add(one, len(units[number].items))
        report("ingest", meter.done, meter.total, meter.numbers())

    if actors := actors_for(units, cluster):
        given = (store.uri, worker_root(cluster, store.root), making, folder)
        calls = [Call(number, "make", (unit,)) for number, unit in enumerate(units)]
        with noticed() as warned:
            for number, (one, notes) in shared_out(
                Maker, given, calls, store.root, cluster, what="reading items", total=len(calls), depth=_DEPTH, actors=actors, gpus=0
            ):
                warned.add(notes)
                finished(number, one)
    else:
        staging = Staging(store.storage, folder)
        with noticed() as warned, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for number, unit in enumerate(units):
                finished(number, make_shard(unit, making, staging, pool, warned))
    return [one for one in made if one is not None]


def actors_for(units: Sequence[Unit], cluster: ClusterConfig) -> int:
    """How many actors read these items; 0 for threads of this process: few items, or such as have no file of their own."""
    if cluster.ingest_actors == 0 or not units:
        return 0
    if any(entry.path is None for unit in units for entry, _ in unit.items[:1]):
        return 0
    if cluster.ingest_actors is None and sum(len(unit.items) for unit in units) < LEAST:
        return 0
    return min(len(units), cluster.ingest_actors or cluster.extract_actors)


class Maker:
    """One actor: everything it is given is an address or plain data."""

    def __init__(self, store: str, root: str, making: Making, folder: str) -> None:
        self._making = making
        self._staging = Staging(Store(store, node_root(root)).storage, folder)
        self._pool = ThreadPoolExecutor(_THREADS)
        self._noticed = Noticed()
        self._kept = contextlib.ExitStack()
        self._kept.enter_context(noticing(self._noticed))

    def make(self, unit: Unit) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """One shard, and what libraries have warned of since the last one."""
        path = unit.items[0][0].path
        if isinstance(path, Path) and not path.parent.exists():
            raise StepError(
                f"{path} is not within reach of the node {socket.gethostname()}: put the data into a bucket or onto a file system that all "
                "nodes share, or read it on this machine (cluster.ingest_actors: 0)"
            )
        return make_shard(unit, self._making, self._staging, self._pool, self._noticed), self._noticed.taken()

"""The batches of a training in the order of its steps, made ahead of them where that is work.

A batch is a function of its step, so that a resumed run, or one with another number of workers or threads, is fed the same.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.data.loader import GB, Loader

log = logging.getLogger(__name__)

_LOOK = 64  # steps ahead of which shards are fetched


class Feed:
    """One worker's part ``start:stop`` of each global batch, on its device.

    Args:
        loader: where the rows come from; its execution settings say how many batches are made ahead.
        settings: seed, batch, steps and window of the training.
        device: where the step wants its batch.
    """

    def __init__(self, loader: Loader, settings: TrainSettings, start: int, stop: int, device: torch.device) -> None:
        self.loader, self.settings, self.device = loader, settings, device
        self.start, self.stop = start, stop
        self.waited = 0.0  # seconds that steps have waited for their batches
        self._made: dict[int, Future[Batch]] = {}
        self._maker: ThreadPoolExecutor | None = None
        self._fetcher: threading.Thread | None = None
        self._ended = threading.Event()
        self._at = 0
        if not settings.window and not loader.fits:
            stored, limit = sum(shard.size for shard in loader.rows.shards), loader.held.limit
            log.warning(
                "the training data has %.1f GB and the node's cache %.1f GB (execution.cache_gb): with train.window=N the rows of N shards "
                "are mixed at a time, and each shard is fetched once an epoch",
                *(stored / GB, limit / GB),
            )

    def batch(self, step: int) -> Batch | None:
        """The batch of a step; None if this worker has no row of it.

        Raises:
            ArtifactError: a shard that is missing or damaged.
        """
        if self.stop <= self.start:
            return None
        self._at = step
        began = time.perf_counter()
        if not self.loader.execution.prefetch or not (self.loader.works or self.device.type == "cuda"):
            made = self._make(step)
        else:
            if self._maker is None:
                self._maker = ThreadPoolExecutor(1, thread_name_prefix="feed")
                self._fetcher = threading.Thread(target=self._fetch, name="fetch", daemon=True)
                self._fetcher.start()
            wanted = range(step, min(step + self.loader.execution.prefetch, self.settings.steps - 1) + 1)
            self._made = {each: self._made.get(each) or self._maker.submit(self._make, each) for each in wanted}
            made = self._made.pop(step).result()
        self.waited += time.perf_counter() - began
        return self._placed(made)

    def close(self) -> None:
        """End the threads."""
        self._ended.set()
        if self._maker is not None:
            self._maker.shutdown(wait=True, cancel_futures=True)
        if self._fetcher is not None:
            self._fetcher.join()
        self._maker = self._fetcher = None
        self._made = {}

    def _make(self, step: int) -> Batch:
        settings = self.settings
        rows = self._rows(step)[self.start : self.stop]
        draws = None
        if self.loader.augmentation is not None:
            draws = Draws(settings.seed, step, settings.steps, self.start, self.stop, settings.batch, torch.device("cpu"), "augment")
        batch = self.loader.stored(rows, draws)
        if batch.signal is not None and self.device.type == "cuda":
            batch = Batch(batch.signal.pin_memory(), batch.tokens, batch.conditions)
        return batch

    def _rows(self, step: int) -> np.ndarray:
        return self.loader.indices(self.settings.seed, step, self.settings.batch, self.settings.window)

    def _placed(self, batch: Batch) -> Batch:
        if batch.signal is None:
            return batch.to(self.device)
        signal = batch.signal.to(self.device, non_blocking=True)
        return self.loader.as_signal(Batch(signal, None, batch.conditions.to(self.device)))

    def _fetch(self) -> None:
        """Bring shards before their rows are asked for: of the steps to come, and all of what is held in one array."""
        shards, looked = len(self.loader.rows.shards), -1
        first = shards * self.start // max(1, self.settings.batch)  # workers of one node begin at different shards
        pending = [(first + i) % shards for i in range(shards)] if not self.settings.window else []
        try:
            while not self._ended.is_set():
                until = min(self._at + _LOOK, self.settings.steps - 1)
                if looked < until:
                    looked = max(looked + 1, self._at)
                    mine = self._rows(looked)[self.start : self.stop]
                    for i in self.loader.shards_of(mine):
                        self.loader.bring([i])
                elif pending and self.loader.fits:
                    self.loader.bring([pending.pop(0)])
                elif self._at >= self.settings.steps - 1:
                    return
                else:
                    self._ended.wait(0.05)
        except Exception:  # the step that needs the shard meets the same error, and tells it
            return

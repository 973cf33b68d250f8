"""Whether a training's steps are compiled: as asked, or decided once by how long the run still is, stored, and obeyed when it goes on.

A compiled step computes in another order, so that its bits are others: which steps are compiled is part of a run's state, not of the
process that happens to carry it on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.parallel import Group

log = logging.getLogger(__name__)

FILE = "compile.json"
#: Steps that are timed before it is decided, and those before them that are not: they allocate, and read the first data.
TIMED, WARM = 10, 3
#: Share of an eager step that a compiled one saves: 1.33 (LlamaGen) and 1.39 (VAR) times as fast on a processor, so a quarter.
SAVED = 0.25
#: Seconds that compiling takes, a phase: one to two minutes were seen.
COST = 90.0


@dataclass(frozen=True)
class Decision:
    """Compiled or not, from which step on, and why in words."""

    compile: bool
    start: int
    why: str


class Compiling:
    """The losses of a training, eager or compiled, by step."""

    def __init__(
        self, asked: bool | Literal["auto"], losses: Callable[..., Any], storage: Storage, folder: str, group: Group, device: torch.device
    ) -> None:
        self._eager, self._storage, self._path, self._group, self._device = losses, storage, f"{folder}/{FILE}", group, device
        self._compiled: Callable[..., Any] | None = None
        self._seen, self._seconds = 0, 0.0
        self.decision = Decision(bool(asked), 0, "asked for") if asked != "auto" else self._stored()

    def losses(self, step: int) -> Callable[..., Any]:
        """What computes the losses of the step after ``step`` others."""
        if self.decision is None or not self.decision.compile or step < self.decision.start:
            return self._eager
        if self._compiled is None:
            self._compiled = torch.compile(self._eager)
        return self._compiled

    def timed(self, step: int, steps: int, seconds: float, phases: int) -> Decision | None:
        """A step took so long; the decision, when this one settles it.  ``step`` of ``steps`` are done."""
        if self.decision is not None:
            return None
        self._seen += 1
        self._seconds += seconds if self._seen > WARM else 0.0
        if self._seen < WARM + TIMED:
            return None
        mean = self._seconds / TIMED
        won = (steps - step) * mean * SAVED - COST * phases
        absent = no_compiler(self._device)
        chosen = bool(self._group.from_first(int(won > 0 and absent is None)))
        rest = f"{steps - step} steps of {mean:.3g} s are left"
        if absent is not None and won > 0:
            why = f"{rest}, but {absent}"
        else:
            gain = f"compiling takes about {COST * phases:.0f} s and saves a quarter of a step"
            why = f"{rest}, {gain}: {'it pays' if chosen else 'it does not pay'}"
        self.decision = Decision(chosen, step, why)
        if self._group.first:
            self._storage.write(self._path, json.dumps(asdict(self.decision)).encode())
            how = "compiled" if chosen else "not compiled"
            log.warning("execution.compile=auto: steps are %s from step %d on: %s", how, step + 1, why)
        return self.decision

    def numbers(self, steps: int) -> dict[str, float]:
        """``compiled_steps`` of a run that compiles, of so many; nothing of others, whose records stay as they were."""
        on = self.decision is not None and self.decision.compile
        return {"compiled_steps": float(steps - self.decision.start)} if on and self.decision is not None else {}

    def _stored(self) -> Decision | None:
        """What an earlier process of this run decided; the same on all workers, as it was written before any checkpoint after it."""
        raw = self._storage.read(self._path) if self._storage.exists(self._path) else None
        return None if raw is None else Decision(**json.loads(raw))


def no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for a device here; None where it can."""
    if device.type != "cpu" or os.environ.get("CXX") or any(shutil.which(name) for name in ("g++", "clang++")):
        return None
    return "there is no C++ compiler (g++ or clang++), which compiling for a processor needs"

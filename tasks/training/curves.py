"""Metrics of a run as chunks of JSON lines in the store: written by the first worker, tailed by the driver.

``<folder>/metrics/<first step>.jsonl``, one row a logged step.  A resumed run writes new chunks; where two rows have
the same step, the later chunk's row counts.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

from tokenloom.tasks.store.storage import Storage
from tokenloom.tasks.training.collapse import WARNINGS

Row = dict[str, Any]

#: File of a training that has begun and not ended: its step and how many optimizer steps it has.
BEGUN = "begun.json"
_CHUNK = 200  # rows of one file: each flush rewrites one small file, also on a store that cannot append


class CurveWriter:
    """Collects rows and writes them at most every ``every`` seconds."""

    def __init__(self, storage: Storage, folder: str, every: float = 1.0) -> None:
        self._storage, self._folder, self._every = storage, f"{folder}/metrics", every
        self._rows: list[Row] = []
        self._written, self._last = 0, 0.0

    def add(self, row: Row) -> None:
        """One row with its ``step``."""
        self._rows.append(row)
        if len(self._rows) >= _CHUNK:
            self.flush()
            self._rows, self._written = [], 0
        elif time.monotonic() - self._last >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet in the store."""
        if len(self._rows) > self._written:
            lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in self._rows)
            self._storage.write(f"{self._folder}/{self._rows[0]['step']:07d}.jsonl", lines.encode())
            self._written, self._last = len(self._rows), time.monotonic()


def _parse(data: bytes) -> list[Row]:
    rows = []
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a torn line of a store without whole writes
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def read_curves(storage: Storage, folder: str) -> list[Row]:
    """All rows of a run by step, each step once."""
    rows: dict[int, Row] = {}
    for path, _ in storage.list(f"{folder}/metrics"):
        rows |= {row["step"]: row for row in _parse(storage.read(path))}
    return [rows[step] for step in sorted(rows)]


class Tail:
    """Follows the chunks of a run and hands over each step once."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, f"{folder}/metrics"
        self._sizes: dict[str, int] = {}
        self._seen: set[int] = set()

    def new(self) -> list[Row]:
        """Rows that came since the last call."""
        fresh: list[Row] = []
        for path, size in self._storage.list(self._folder):
            if self._sizes.get(path) != size:
                self._sizes[path] = size
                try:
                    rows = _parse(self._storage.read(path))
                except FileNotFoundError:
                    continue
                for row in rows:
                    if row["step"] not in self._seen:
                        self._seen.add(row["step"])
                        fresh.append(row)
        return sorted(fresh, key=lambda row: int(row["step"]))


def numbers(row: Row) -> dict[str, float]:
    """The finite numbers of a row, without its step."""
    return {k: float(v) for k, v in row.items() if k != "step" and isinstance(v, (int, float)) and math.isfinite(v)}


def under_way(storage: Storage, folder: str) -> dict[str, Any] | None:
    """How far a training that has not ended is: ``step``, ``steps``, ``done``; None where this folder holds none."""
    try:
        begun = dict(json.loads(storage.read(f"{folder}/{BEGUN}")))
    except (FileNotFoundError, ValueError):
        return None
    rows = read_curves(storage, folder)
    return {"step": begun.get("step"), "steps": begun.get("steps"), "done": rows[-1]["step"] if rows else 0}


def final_metrics(rows: list[Row], steps: int, kept: int) -> Row:
    """The metrics that a finished training is known by: the newest of each name at its end and when it was validated, and its best step.

    Args:
        rows: of its curves.
        steps: that it made.
        kept: the step whose weights were kept.
    """
    found: Row = {}
    for row in (row for row in rows if row["step"] == steps or "validation_loss" in row):
        found |= {name: value for name, value in row.items() if name not in ("step", WARNINGS)}
    found["steps"] = steps
    if validated := [(row["validation_loss"], row["step"]) for row in rows if "validation_loss" in row]:
        loss, at = min(validated)
        found |= {"best_validation_loss": loss, "best_step": at, "kept_step": kept}
    return found

"""What an evaluation finds, whatever the kind of signal: numbers, pictures and arrays, kept with a report."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenloom.tasks.costs.took import cells, row
from tokenloom.tasks.evaluation.report import page
from tokenloom.tasks.store.artifacts import RECORD, Artifact, Record, StepSpec, Store, Work
from tokenloom.tasks.training.curves import read_curves

Numbers = dict[str, float]


@dataclass
class Findings:
    """What an evaluation has found so far."""

    numbers: Numbers = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, bytes] = field(default_factory=dict)  # file name to .npz
    files: dict[str, Path] = field(default_factory=dict)  # file name to a local file, which goes when it is kept

    def add(self, more: Findings) -> None:
        """Take over what another part of the evaluation has found."""
        self.numbers |= more.numbers
        self.pictures |= more.pictures
        self.notes |= more.notes
        self.arrays |= more.arrays
        self.files |= more.files


def keep(step: StepSpec, found: Findings, work: Work, titles: Mapping[str, str]) -> None:
    """Write numbers, pictures, arrays and the report into the artifact; ``titles`` are those of pictures in the report."""
    for name, data in found.arrays.items():
        work.put(name, data)
    for name, path in found.files.items():
        work.put_file(path, name)
        path.unlink()
    for name, data in found.pictures.items():
        work.put(f"{name}.png", data)
    work.put("metrics.json", json.dumps(found.numbers, indent=1, sort_keys=True).encode())
    work.put("protocol.json", json.dumps(found.notes, indent=1, sort_keys=True).encode())
    lineage = {role: artifact.id for role, artifact in step.inputs.items()}
    report = page(step.name, found.numbers, found.notes, lineage, found.pictures, titles, _taken(step, work))
    work.put("report.html", report.encode())


def _taken(step: StepSpec, work: Work) -> dict[str, list[str]]:
    """What making each input took, by role; those whose records are not there are left out."""
    found = {}
    for role, artifact in step.inputs.items():
        path = f"{artifact.folder}/{RECORD}"
        with contextlib.suppress(FileNotFoundError):
            found[role] = cells(row(Record.from_bytes(work.storage.read(path), path, work.storage)))
    return found


def arrays(**named: NDArray[Any]) -> bytes:
    """A ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **named)
    return buffer.getvalue()


def arrays_file(folder: Path, **named: NDArray[Any]) -> Path:
    """A ``.npz`` file in a folder, of arrays that may be larger than memory."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npz", delete=False) as file:
        np.savez_compressed(file, allow_pickle=False, **named)
    return Path(file.name)


def training_curves(store: Store, models: dict[str, Artifact]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Loss and validation loss over the steps of each model that was trained here."""
    series = {}
    for role, artifact in models.items():
        rows = read_curves(store.storage, artifact.folder)
        lines = {}
        for name in ("loss", "validation_loss"):
            points = [(float(r["step"]), float(r[name])) for r in rows if isinstance(r.get(name), (int, float)) and np.isfinite(r[name])]
            if points:
                lines[name.replace("_", " ")] = ([p[0] for p in points], [p[1] for p in points])
        if lines:
            series[role] = lines
    return series

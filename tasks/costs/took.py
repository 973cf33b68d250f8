"""What trainings really took: measured while they work, kept in their records, and the share of a peak that the next plan goes by."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tokenloom.models.core.settings import TrainSettings

if TYPE_CHECKING:
    from tokenloom.tasks.store.records import Record
    from tokenloom.tasks.training.speed import Accelerator

#: Share of the peak that a training is taken to use where no run has told.
SHARE = 0.4
#: Of the past runs that tell the share, so many of the newest.
NEWEST = 5
#: Name of the note of a trained artifact's record.
TOOK = "took"


@dataclass(frozen=True)
class Rate:
    """The share of an accelerator's peak that a training uses, and how that is known."""

    share: float = SHARE
    source: str = "assumed"


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: of the accelerator, or of the whole process (libraries too) on a processor."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    """What a training worked on, as its record says: the accelerator's own name, or ``CPU``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def rate_of(records: Iterable[Record], accelerator: Accelerator, recipe: str, precision: str) -> Rate:
    """The share that past trainings on this accelerator have used: the median of the newest of the same recipe, else of any.

    Args:
        records: of trained models, oldest first.
        accelerator: what they are asked for.
        recipe: whose trainings count first.
        precision: whose peak counts.
    """
    mine: list[float] = []
    other: list[float] = []
    for record in records:
        took = record.notes.get(TOOK, {})
        if accelerator.name in took.get("device", "") and took.get("flops_per_second") and took.get("precision") == precision:
            share = took["flops_per_second"] / took["workers"] / accelerator.peak(precision)
            (mine if record.notes.get("recipe", record.config.get("recipe")) == recipe else other).append(share)
    shares = (mine or other)[-NEWEST:]
    if not shares:
        return Rate()
    return Rate(statistics.median(shares), f"{len(shares)} past training{'s'[: len(shares) > 1]}{'' if mine else ' of other recipes'}")


def noted(metrics: Mapping[str, Any], settings: TrainSettings, planned: Mapping[str, Any]) -> dict[str, Any]:
    """The note of a training: what its workers measured, beside what had been planned.

    Args:
        metrics: the final ones of the training.
        settings: of the training.
        planned: ``flops_per_item`` and ``memory_bytes``, as far as they are known.
    """
    found = {"device": metrics.get("device", "CPU"), "workers": metrics["workers"], "precision": settings.precision}
    found |= {"seconds": metrics["train_seconds"], "peak_memory_bytes": metrics.get("peak_memory_bytes")}
    rows = (metrics["steps"] - metrics.get("resumed_from", 0)) * settings.batch
    if rows > 0 and metrics["train_seconds"] > 0:
        found["rows_per_second"] = rows / metrics["train_seconds"]
    if flops := planned.get("flops_per_item"):
        found |= {"flops_per_item": flops, "flops": flops * metrics["steps"] * settings.batch}
        if "rows_per_second" in found:
            found["flops_per_second"] = flops * found["rows_per_second"]
    if "memory_bytes" in planned:
        found["planned_memory_bytes"] = planned["memory_bytes"]
    return found


def row(record: Record) -> dict[str, Any]:
    """What making an artifact took, as plain data: seconds, bytes in the store and, of a training, what was measured of it."""
    size = sum(file["size"] for file in record.files)
    return {"seconds": record.seconds, "store_bytes": size, "training": dict(record.notes.get(TOOK, {}))}


#: Columns of ``cells``, besides the name in front.
COLUMNS = ("time", "store", "training alone", "memory a worker", "FLOP")


def cells(taken: Mapping[str, Any]) -> list[str]:
    """``row`` for people, in the order of ``COLUMNS``; empty where a thing is not known."""
    train = taken["training"]
    speed = f", {train['rows_per_second']:,.0f} items/s" if "rows_per_second" in train else ""
    alone = f"{length(train['seconds'])} on {train['workers']} {train['device']}{speed}" if train else ""
    memory = size_of(train["peak_memory_bytes"]) if train.get("peak_memory_bytes") else ""
    if memory and train["device"] == "CPU":
        memory += " the whole process"
    if memory and "planned_memory_bytes" in train:
        memory += f" ({size_of(train['planned_memory_bytes'])} planned for the model)"
    flops = f"{train['flops']:.3g}" if "flops" in train else ""
    rate = f" at {train['flops_per_second'] / train['workers']:.3g}/s a worker" if "flops_per_second" in train else ""
    return [length(taken["seconds"]), size_of(taken["store_bytes"]), alone, memory, flops + rate]


def length(seconds: float) -> str:
    """Seconds for people: ``2.1 h``, ``3.4 min`` or ``5.0 s``."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def size_of(size: int) -> str:
    """Bytes for people: ``2.0 GiB``, ``3.1 MiB`` or ``0.4 KiB``."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.1f} KiB"

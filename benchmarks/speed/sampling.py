"""Sampling with the papers' guidance and filters, against the plain readings, after greedy samples were seen to be equal."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.speed.families import FAMILIES, Pair
from benchmarks.speed.timing import compare


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios by family and batch size."""
    found: dict[str, Any] = {}
    for name, family in FAMILIES.items():
        if only in (None, name):
            pair = Pair(family, "quick" if quick else "full")
            pair.same_samples()
            for rows in (4,) if quick else (1, 4, 16):
                labels = torch.arange(rows)
                times = compare(partial(pair.sample_ours, labels), partial(pair.sample_plain, labels), turns=3, warm=0)
                found[label := f"{name}, batch {rows}"] = times.row()
                print(f"{label}: {found[label]}", flush=True)
    return found

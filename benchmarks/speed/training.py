"""A training step against the plain readings: loss and gradient, then clipping and AdamW, after losses and gradients were seen to be equal.

Ours is what ``tasks/training`` does in a step; the plain step is what the official trainers do: ``zero_grad``, ``backward``,
``clip_grad_norm_``, ``AdamW``.  Dropout is that of the papers in the second row of a family, where it has some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.families import FAMILIES, Family, Pair
from benchmarks.speed.timing import compare
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.settings import OptimizerSettings
from tokenloom.tasks.training.optimizer import PhaseOptimizer

ROWS = {True: 4, False: 8}


def steps(pair: Pair, batch: Batch, loss: Callable[[int], Tensor] | None = None) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of ours and a plain one, each with the optimizer's part."""
    phase = PhaseOptimizer(pair.ours, "train", OptimizerSettings(lr=1e-5, clip=1.0))
    plain = torch.optim.AdamW([p for p in pair.plain.parameters() if p.requires_grad], lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)
    assert batch.tokens is not None
    ids, labels = batch.tokens.data, batch.conditions.get("class").label_B  # type: ignore[union-attr]
    count = [0]

    def ours() -> None:
        count[0] += 1
        phase.clear()
        (pair.loss_ours(batch, count[0]) if loss is None else loss(count[0])).backward()
        phase.clip()
        phase.step(count[0], 1000)

    def official() -> None:
        plain.zero_grad(set_to_none=True)
        pair.plain.loss(ids, labels).backward()
        torch.nn.utils.clip_grad_norm_(pair.plain.parameters(), 1.0)
        plain.step()

    return ours, official


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios by family, without and with the paper's dropout."""
    found: dict[str, Any] = {}
    for name, family in FAMILIES.items():
        if only in (None, name):
            found |= _family(name, family, quick)
    return found


def _family(name: str, family: Family, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = "quick" if quick else "full"
    for rate in (0.0, family.dropout) if family.dropout else (0.0,):
        pair = Pair(family, size, rate)
        batch = pair.batch(ROWS[quick])
        if rate:
            pair.ours.train()
            pair.plain.train()
        else:
            pair.same_loss(batch)
        times = compare(*steps(pair, batch), turns=5 if quick else 11)
        found[label := f"{name}, dropout {rate}" if rate else name] = times.row()
        print(f"{label}: {found[label]}", flush=True)
    return found

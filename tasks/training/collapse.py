"""Collapse: a codebook of which a tokenizer in training uses almost nothing, noticed while it can still be stopped.

Steps report ``perplexity`` (effective number of codes) of each group, a scale or a codebook: ``perplexity_2x2``,
``perplexity_book1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenloom.models.core.protocols import TokenLayout

AFTER = 0.2  # share of the steps before which a codebook may still be finding its codes
LEAST = 0.1  # share of the codes that could be in use, of which less is a collapse
WARNINGS = "collapsed"  # a row's field: group to warning
_METRIC = "perplexity"


class Watch:
    """Looks at the metrics of logged steps; each group is warned of once.

    Args:
        layout: of the tokenizer's tokens; continuous ones have nothing to collapse.
        batch: rows of the global batch.
        steps: of the whole training.
        rows: metrics logged before, by a run that is going on: their warnings are not repeated.
    """

    def __init__(self, layout: TokenLayout, batch: int, steps: int, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._layout, self._batch, self._steps = layout, batch, steps
        self._reported = set(found(rows))

    def look(self, step: int, numbers: Mapping[str, float]) -> dict[str, str]:
        """Group to warning, of the groups that are found collapsed now for the first time."""
        if step < AFTER * self._steps or not self._layout.discrete:
            return {}
        fresh = {}
        for name, value in numbers.items():
            if name != _METRIC and not name.startswith(f"{_METRIC}_"):
                continue
            group = name.removeprefix(_METRIC).lstrip("_")
            could = self._could(group)
            # Above 1, which is the least there is: with two codes, 1.05 is a collapse and 2 is even use.
            if group not in self._reported and value - 1 < LEAST * (could - 1):
                fresh[group] = self._text(step, group, value, could, numbers.get(name.replace(_METRIC, "use")))
        self._reported |= set(fresh)
        return fresh

    def _could(self, group: str) -> int:
        """Codes of a group that one batch could use: all of them, or as many as the batch has vectors."""
        scale = re.fullmatch(r"(\d+)x(\d+).*", group)
        positions = int(scale[1]) * int(scale[2]) if scale else self._layout.length
        return min(self._layout.vocabulary, self._batch * positions)

    def _text(self, step: int, group: str, value: float, could: int, use: float | None) -> str:
        where = f"scale {group}" if re.match(r"\d+x\d+", group) else f"codebook {group.removeprefix('book')}" if group else "the codebook"
        share = "" if use is None else f", {use:.1%} of its codes are in use"
        return (
            f"{where} is collapsing: after step {step} of {self._steps} its perplexity is {value:.3g} of {could} codes that could be in "
            f"use{share}. What may help: fewer codes, a lower learning rate, a quantizer that revives dead codes or has an entropy loss, "
            "a larger batch"
        )


def found(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Group to warning, of all rows of a training."""
    return {group: text for row in rows for group, text in (row.get(WARNINGS) or {}).items()}

"""What ingest found, in a line: items, classes with counts, captions, columns, splits, and what was rejected and why."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenloom.tasks import modalities
from tokenloom.tasks.data.matching import SPLITS
from tokenloom.tasks.store.artifacts import Record

_CLASSES = 6  # that a line names
_REASONS = 3


def found(record: Record) -> str:
    """One line about a dataset: of those that earlier versions made, what their records hold."""
    notes, metrics = record.notes, record.metrics
    noted = notes.get("found", {})
    noun = modalities.of(notes).noun
    counts = noted.get("counts", [None] * len(notes["classes"]))
    parts = [f"{sum(metrics[split] for split in SPLITS):,} {noun}", _classes(notes["classes"], counts)]
    if "captions" in noted:
        parts.append(f"{noted['captions']:,} captions" if noted["captions"] else "no captions")
    if columns := record.config["data"].get("columns"):
        parts.append(f"columns {', '.join(columns)}")
    parts.append(", ".join(f"{split} {metrics[split]:,}" for split in SPLITS if metrics[split]))
    if metrics["rejected"]:
        parts.append(
            f"{metrics['rejected']:,} rejected ({noted['rejected']})" if noted.get("rejected") else f"{metrics['rejected']:,} rejected"
        )
    if untrained := noted.get("untrained"):
        parts.append(f"no training {noun} of {', '.join(untrained[:_CLASSES])}{', …' if len(untrained) > _CLASSES else ''}")
    if noted.get("how"):
        parts.append(noted["how"])
    return "; ".join(parts)


def _classes(names: Sequence[str], counts: Sequence[int | None]) -> str:
    each = [name if count is None else f"{name} {count:,}" for name, count in zip(names, counts)]
    more = f", … {names[-1]} {counts[-1]:,}" if len(names) > _CLASSES and counts[-1] is not None else ""
    listed = ", ".join(each[: _CLASSES - bool(more)]) if len(names) > _CLASSES else ", ".join(each)
    return f"{len(names)} class{'es' * (len(names) != 1)} ({listed}{more})"


def reasons(rejects: Iterable[Mapping[str, Any]]) -> str:
    """Reasons with their counts and first examples, the most frequent first: ``3 x empty file (first: cat/7.png)``."""
    alike: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for reject in rejects:
        alike[re.sub(r"[0-9]+", "#", reject["reason"])].append(reject)
    ordered = sorted(alike.values(), key=len, reverse=True)
    parts = [f"{len(each)} x {each[0]['reason']} (first: {each[0]['source']})" for each in ordered[:_REASONS]]
    rest = sum(len(each) for each in ordered[_REASONS:])
    return "; ".join(parts) + (f"; {rest} for other reasons" if rest else "")


def noted(items: Iterable[Mapping[str, Any]], rejects: Sequence[Mapping[str, Any]], classes: Sequence[str], how: str) -> dict[str, Any]:
    """What a dataset's record notes for ``found``; ``label`` of an item is its class name."""
    rows = list(items)
    counts = Counter(row["label"] for row in rows)
    told: dict[str, Any] = {"counts": [counts[name] for name in classes], "captions": sum(row["caption_bytes"] > 0 for row in rows)}
    if told["captions"]:
        longest = max(rows, key=lambda row: (row["caption_bytes"], str(row["key"])))
        told["longest"] = [longest["caption_bytes"], longest["key"]]
    trained = {row["label"] for row in rows if row["split"] == "train"}
    told |= {"untrained": untrained} if (untrained := [name for name in classes if name not in trained]) else {}
    return told | ({"rejected": reasons(rejects)} if rejects else {}) | ({"how": how} if how else {})

"""The page of what was measured, from ``benchmarks/results/speed.json``: ``docs/speed.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenloom.tasks.evaluation.report import markdown_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "speed.json", ROOT / "docs" / "speed.md"

_HEAD = """# Speed

Made by `python -m benchmarks.speed sampling|training|loader|loop|start` (with `--quick`: small sizes, less than a minute, nothing kept);
the last line of each is JSON of its ratios.

A ratio is the time of the plain way over ours: above one, ours is faster. The plain way of a family is a reading of the published
algorithm in a file of its own (`benchmarks/speed/plain/`), step by step as the official code does it, with the same weights: greedy
samples, losses and norms of gradients were equal before anything was timed. Both sides run turn by turn in one process on one thread; times are
those of the processor, ratios are those of the medians, beside them the least and the largest ratio of a single turn.

No accelerator was at hand: nothing below was seen on one.
"""
_TITLES = {
    "sampling": "Sampling, with the papers' guidance, top-k and top-p",
    "training": "A training step: loss, gradients, clipping, AdamW",
    "loop": "The loop around a model that costs nothing, against a bare loop",
    "loader": "Batches from the node's cache, against a gather from one array in memory",
    "start": "Cold starts, against Python with its first import",
}


def keep(kind: str, machine: dict[str, str], rows: dict[str, Any]) -> None:
    """Put a full bench's result into the file, and write the page."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found[kind] = {"machine": machine, "rows": {**found.get(kind, {}).get("rows", {}), **rows}}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """The page about these results."""
    parts = [_HEAD]
    for kind, title in _TITLES.items():
        if kind in found:
            rows = found[kind]["rows"]
            table = [
                [
                    name,
                    f"{r['ratio']:.2f}",
                    "{:.2f} to {:.2f}".format(*r["least_and_largest"]),
                    f"{r['ours_ms']:.4g}",
                    f"{r['plain_ms']:.4g}",
                ]
                for name, r in rows.items()
            ]
            where = ", ".join(f"{k} {v}" if k in ("python", "torch") else v for k, v in found[kind]["machine"].items())
            parts.append(f"## {title}\n\n{where}.\n\n{markdown_table(['', 'ratio', 'single turns', 'ours, ms', 'plain, ms'], table)}\n")
    return "\n".join(parts)

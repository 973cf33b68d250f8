"""The page of what was measured, from ``benchmarks/results/speed.json``: ``docs/speed.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenloom.tasks.evaluation.report import markdown_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "speed.json", ROOT / "docs" / "speed.md"

_HEAD = """# Speed

Made by `python -m benchmarks.speed sampling|training|loader|loop|start --keep`; with `--quick` sizes are small and a bench takes less
than a minute of a thread of its own. The last line of each is JSON of its ratios.

A ratio is the time of the plain way over ours: above one, ours is faster. The plain way of a family is a reading of the published
algorithm in a file of its own (`benchmarks/speed/plain/`), step by step as the official code does it, with the same weights: greedy
samples, losses and norms of gradients were equal before anything was timed. Both sides run turn by turn in one process on one
thread; times are those of the processor, ratios those of the medians, and beside them stand the least and the largest of a turn.

No accelerator was at hand: nothing below was seen on one.
"""
_TITLES = {
    "sampling": "Sampling, with the papers' guidance, top-k and top-p",
    "training": "A training step: loss, gradients, clipping, AdamW",
    "loop": "The loop around a model that costs nothing, against a bare loop",
    "loader": "Batches from the node's cache, against a bare loop over JPEG files and a gather from one array",
    "start": "Cold starts, against Python with its first import",
}


def keep(kind: str, quick: bool, machine: dict[str, str], rows: dict[str, Any]) -> None:
    """Put a bench's result into the file, and write the page."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    earlier = found.get(kind, {"quick": quick, "rows": {}})
    found[kind] = {"quick": quick, "machine": machine, "rows": {**(earlier["rows"] if earlier["quick"] == quick else {}), **rows}}
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
            sizes = "Small sizes (`--quick`)" if found[kind]["quick"] else "Full sizes"
            parts.append(
                f"## {title}\n\n{sizes}; {where}.\n\n{markdown_table(['', 'ratio', 'single turns', 'ours, ms', 'plain, ms'], table)}\n"
            )
    return "\n".join(parts)

"""The likelihood table: densities of images of 8 bits, in bits a value, on images that none of them was trained on.

    python benchmarks/likelihoods.py [--root FOLDER] [--only NAME …] [--minutes N] [--steps 2000] [--images 24000] [--page PAGE]

Trains and measures each entry of ``SUITE`` on Fashion-MNIST at 32 pixels, one after another in one Ray session, for as many steps of as
many images each, and prints a Markdown table.  What the store has is not done again: an interrupted run goes on, and ``--minutes`` stops
with status 75.  Numbers after few steps say that everything fits together, not which density is the best.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite import Suite

from tokenloom.configs.load import load_cluster
from tokenloom.configs.schema import RunConfig
from tokenloom.models.core import registry
from tokenloom.tasks.store.artifacts import Store

BATCH, LR = 64, 1e-3
#: Of densities, exact or not: a bound from above on the bits that an image takes.
METRIC = "bound_bits_per_dim"


@dataclass(frozen=True)
class Entry:
    """One density: its recipe, arguments for these images, and how its number comes about."""

    name: str
    how: str
    args: dict[str, Any] = field(default_factory=dict)


#: Small models; sizes as published are those of ``args: {size: …}``.
SUITE = (
    Entry("iwae", "importance weighted bound, 100 latents", {"latent": 32, "width": 256}),
    Entry("infovae", "importance weighted bound of the trained autoencoder", {"latent": 32, "width": 256}),
    Entry("autogen", "importance weighted bound of the trained autoencoder", {"latent": 32, "width": 256}),
    Entry("dg_vae", "importance weighted bound of the trained autoencoder", {"latent": 32, "width": 256}),
    Entry("glow", "change of variables, one draw of uniform dequantisation: a bound", {"scales": 3, "steps": 4, "width": 64}),
    Entry(
        "flowpp",
        "change of variables, one draw of the variational dequantisation: a bound",
        {"scales": [[0, 2], [2, 2]], "width": 32, "blocks": 2, "components": 8, "dequant": 1},
    ),
    Entry(
        "tarflow",
        "change of variables, one draw of uniform dequantisation: a bound",
        {"width": 128, "flows": 4, "depth": 2, "patch": 4, "noise": 0.0},
    ),
    Entry(
        "fractalgen",
        "exact: the sum over levels, down to the values of a pixel",
        {"sides": [0, 4, 1], "widths": [64, 64, 64], "depths": [2, 2, 1], "heads": [4, 4, 4]},
    ),
)


def run_of(entry: Entry, steps: int, images: int) -> RunConfig:
    """The entry as a run file."""
    half = max(1, steps // 2)
    document = {
        "name": f"bits-{entry.name.replace('_', '-')}",
        "data": {"source": "fashion_mnist", "size": 32, "fit": "pad", "limit": images, "validation": 0.1667, "shard_rows": 4096},
        "density": {
            "recipe": entry.name,
            "args": entry.args,
            "train": {
                **{"steps": steps, "batch": BATCH, "ema": 0.999, "optimizer": {"lr": LR, "clip": 1.0}},
                **{"log_every": max(1, steps // 40), "validate_every": half, "checkpoint_every": half},
            },
        },
        "evaluate": {"samples": 100, "shard": 50, "metrics": ["fd", "nll"]},
    }
    return RunConfig.model_validate(document)


def table(store: Store, runs: dict[str, RunConfig]) -> str:
    """A row for each run that is done, fewest bits first."""
    rows = []
    for name, run in runs.items():
        record = store.record(store.resolve(run.name, "evaluation"))
        rows.append((float(record.metrics[METRIC]), name, next(entry.how for entry in SUITE if entry.name == name)))
    lines = ["| density | paper | bits a value, held-out images | how it was computed |", "|---|---|---|---|"]
    for bits, name, how in sorted(rows):
        paper = registry.get(name).paper
        lines.append(f"| `{name}` | [{paper}](https://arxiv.org/abs/{paper}) | {bits:.3f} | {how} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".tokenloom/likelihoods"), help="where the runs live, kept between calls")
    parser.add_argument("--only", nargs="*", default=(), help="entries to run, in this order; all if not given")
    parser.add_argument("--minutes", type=float, default=0, help="start none after this many minutes (0: never); the same command goes on")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of each")
    parser.add_argument("--images", type=int, default=24_000, help="images, of which a sixth is held out")
    parser.add_argument("--page", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    entries = {entry.name: entry for entry in SUITE}
    if unknown := set(options.only) - set(entries):
        parser.error(f"unknown entries: {', '.join(sorted(unknown))}; there are: {', '.join(entries)}")
    runs = {name: run_of(entries[name], options.steps, options.images) for name in options.only or entries}
    suite = Suite(options.root, load_cluster(sets=("cluster.execution.workers=1",)))
    suite.run(runs, options.minutes)
    found = table(suite.store, {name: run for name, run in runs.items() if run.name in suite.done})
    print(found)
    if options.page:
        options.page.write_text(found)
    return suite.status


if __name__ == "__main__":
    sys.exit(main())

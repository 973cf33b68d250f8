"""Every recipe end to end on real images, one after another in one Ray session; what is done is not done again.

    python benchmarks/recipes.py [--root FOLDER] [--only NAME …] [--minutes N] [--table docs/recipes.md]

Runs each ``configs/runs/smoke_*.yaml``: ingest, training, extraction, evaluation, and registration of generators.  Then the
tokens of the first shard are made again by the tokenizer in the store and must be equal to those that were stored (a density has none).
An interrupted run goes on where it was; ``--minutes`` stops after that time with exit status 75.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tokenloom.configs.load import load_cluster, load_run, shipped
from tokenloom.configs.schema import RunConfig
from tokenloom.flows import pipeline, planning, results
from tokenloom.flows.workspace import Workspace
from tokenloom.models.core import registry
from tokenloom.models.core.build import load_model
from tokenloom.models.core.protocols import Tokenizer
from tokenloom.tasks.data.tokens import read_tokens
from tokenloom.tasks.evaluation.report import markdown_table
from tokenloom.tasks.modalities.image.judging.features import read_images, to_float
from tokenloom.tasks.runtime.cluster import session
from tokenloom.tasks.runtime.errors import Preempted
from tokenloom.tasks.store.artifacts import Artifact, Store

Row = dict[str, Any]
COLUMNS = ("recipe", "kind", "tokens", "bits", "parameters", "fd", "seconds", "result")


def smoke_runs() -> dict[str, RunConfig]:
    """The smallest run of each recipe: recipe to run; the recipe is that of the run's last model."""
    runs = [load_run(name) for name in sorted(shipped("runs")) if name.startswith("smoke_")]
    found: dict[str, RunConfig] = {}
    for run in runs:  # of two runs of one recipe, the first by name
        model = run.generator or run.density or run.tokenizer
        found.setdefault((model.recipe if model else None) or run.name, run)
    return found


def stored_equal(store: Store, dataset: Artifact, tokenizer: Artifact, tokens: Artifact) -> bool:
    """Whether the stored tokens of the held-out images are what the tokenizer makes of them."""
    model = cast(Tokenizer, load_model(store.fetch(tokenizer, "model.json", "weights.safetensors"))[0])
    image, _ = read_images(store, dataset, ["validation", "test"])
    shards = [s for s in store.record(tokens).notes["shards"] if s["split"] != "train"]
    stored = np.concatenate([read_tokens(store.storage.read(s["path"]), s["path"]).data for s in shards])
    with torch.no_grad():
        made = model.encode(to_float(image)).data.numpy()
    layout = model.layout
    same = np.array_equal(made.astype(stored.dtype), stored) if layout.discrete else np.allclose(made, stored, atol=2e-3, rtol=2e-3)
    return same


def judge(name: str, config: RunConfig, root: Path) -> Row:
    """Run one recipe with what the store has, and check its tokens."""
    started = time.monotonic()
    work = Workspace.open(config.name, str(root), None, load_cluster(None, ()))
    row: Row = {"recipe": name, "kind": "generator" if config.generator else "density" if config.density else "tokenizer"}
    try:
        planned = planning.plan(config, work.store, work.tracker.uri)
        if all(one.status == "cached" for one in planned):
            made = {done.name: done.artifact for done in results.steps_of(planned)}
        else:
            pipeline.run(config, work)
            made = {done.name: done.artifact for done in work.done}
        artifacts = {k: cast(Artifact, v) for k, v in made.items()}
        equal = config.density is not None or stored_equal(
            work.store, artifacts["ingest"], artifacts["train_tokenizer"], artifacts["extract"]
        )
        metrics = work.store.record(artifacts["evaluate"]).metrics
        quality = "fd_classifier" if config.generator or config.density else "rfd_classifier"
        row |= {"parameters": int(metrics["parameters"]), "fd": round(metrics[quality], 2)}
        if config.density is None:
            row |= {"tokens": int(metrics["tokens_per_image"]), "bits": round(metrics["bits_per_image"])}
        row["result"] = "passed" if equal else "tokens read back differ"
    except Preempted:
        raise
    except Exception as error:
        row["result"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row | {"seconds": round(time.monotonic() - started, 1)}


def markdown(rows: list[Row]) -> str:
    """The page: what it is, how it is made, the table."""
    lines = [
        "# Every recipe, end to end",
        "",
        "Made by `python benchmarks/recipes.py` (part of `make test-all`): each recipe's smoke run, the whole chain on real images with",
        "Ray workers, a few optimizer steps; then the stored tokens are compared with what the tokenizer in the store makes. It shows that",
        "everything fits together, not quality (see `docs/tokenizers.md` and `docs/leaderboard.md`): `fd` is that of a barely trained",
        "model, and `seconds` count what the store did not have, beside whatever else ran on the machine.",
        "",
        markdown_table(COLUMNS, [[row.get(c) for c in COLUMNS] for row in rows]),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(".tokenloom/recipes"), help="where the runs live, kept between calls")
    parser.add_argument("--only", nargs="*", default=(), help="recipes to run; all if not given")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this many minutes (0: never); the same command goes on")
    parser.add_argument("--table", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    runs = smoke_runs()
    missing = sorted(set(options.only or registry.names()) - set(runs))
    if missing:
        parser.error(f"no configs/runs/smoke_*.yaml for: {', '.join(missing)}")
    chosen = {name: run for name, run in runs.items() if not options.only or name in options.only}
    console, rows, started = Console(stderr=True), [], time.monotonic()
    options.root.mkdir(parents=True, exist_ok=True)
    with session(load_cluster(None, ()), options.root):
        for i, (name, config) in enumerate(chosen.items(), 1):
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                console.print(f"stopped before {name}: the same command goes on")
                return 75
            console.print(f"[{i}/{len(chosen)}] {name}", markup=False)
            try:
                rows.append(judge(name, config, options.root))
            except Preempted as error:
                console.print(f"{error}", markup=False)
                return 75
            console.print(f"    {rows[-1]['result']} in {rows[-1]['seconds']} s", markup=False)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(str(row.get(c, "-")) for c in COLUMNS))
    Console().print(table)
    if options.table:
        options.table.write_text(markdown(rows))
    return int(any(row["result"] != "passed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

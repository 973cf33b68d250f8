"""The page of the generators' leaderboard: rows, verdicts on the papers' claims, the plot of quality against speed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import budget
import numpy as np
from claims import CONFIDENCE, Claim, Measured, Spread
from suite import between

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.build import load_model
from tokenloom.models.core.protocols import Generator
from tokenloom.tasks.evaluation import compare, plots
from tokenloom.tasks.evaluation.report import markdown_table
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.store.storage import atomic

QUALITY = "fd_classifier"
BEGIN, END = "<!-- leaderboard: made by benchmarks/generators.py -->", "<!-- end of leaderboard -->"
Runs = Mapping[str, Sequence[RunConfig]]


def leading(store: Store, runs: Runs, count: int) -> list[str]:
    """The entries of best quality, by their first seed."""
    rows = {str(row["run"]): row for row in compare.leaderboard(store, [each[0].name for each in runs.values()])}
    return sorted(runs, key=lambda name: float(rows[runs[name][0].name][QUALITY]))[:count]


def generator(store: Store, run: str) -> Generator:
    """The generator that the newest evaluation of a run judged."""
    at = store.record(store.resolve(run, "evaluation")).inputs["generator"]
    return cast(Generator, load_model(store.fetch(at, "model.json", "weights.safetensors"))[0])


def speeds(store: Store, runs: Runs, reference: str, classes: int = 10) -> dict[str, dict[str, float]]:
    """Passes and speed of each entry, sampled in turn with the reference; kept beside the store by the evaluation's id."""
    file = store.root / "speeds.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    against = generator(store, runs[reference][0].name)
    found = {}
    for name, each in runs.items():
        key = store.resolve(each[0].name, "evaluation").id
        if key not in kept:
            model = generator(store, each[0].name)
            kept[key] = {"passes": budget.passes(model, classes), **budget.speed_ratio(model, against, classes)}
            file.write_text(json.dumps(kept, indent=1))
        found[name] = kept[key]
    return found


def table(
    store: Store, runs: Runs, reference: str, costs: Mapping[str, budget.Cost], claims: Mapping[str, Claim | None]
) -> list[dict[str, Any]]:
    """One row an entry, best quality first; speeds are those over ``reference``'s."""
    rows = {str(row["run"]): row for row in compare.leaderboard(store, [run.name for each in runs.values() for run in each])}
    cost = speeds(store, runs, reference)
    measured = {
        name: Measured([float(rows[run.name][QUALITY]) for run in each], int(cost[name]["passes"]), costs[name].flops)
        for name, each in runs.items()
    }
    spread = Spread.of(measured)
    result = []
    for name, each in runs.items():
        row = rows[each[0].name]
        record = store.record(store.resolve(str(row["evaluation"]), "evaluation"))
        quality, claim = measured[name].quality, claims[name]
        verdict = claim.judge(name, measured, spread) if claim else None
        assert each[0].generator is not None
        result.append({
            "method": name,
            "tokenizer": row["tokenizer"],
            QUALITY: float(np.mean(quality)),
            "range": f"{min(quality):.2f} to {max(quality):.2f}" if len(quality) > 1 else "",
            "precision": float(np.mean([rows[run.name]["precision"] for run in each])),
            "recall": float(np.mean([rows[run.name]["recall"] for run in each])),
            "nll": record.metrics.get("nll_bits_per_image"),
            "passes": measured[name].passes,
            "images_per_second": cost[name]["images_per_second"],
            "speed": cost[name]["speed"],
            "parameters": costs[name].parameters,
            "steps": each[0].generator.train.steps,
            "claim": claim.text if claim else "the reference",
            "here": verdict.word if verdict else "",
            "why": verdict.why if verdict else "",
        })  # fmt: skip
    return sorted(result, key=lambda row: row[QUALITY])


def markdown(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a Markdown table; ``columns`` are their names to headings."""
    return markdown_table(list(columns.values()), [[row[c] for c in columns] for row in rows])


NUMBERS = {
    "method": "method", "tokenizer": "tokenizer", QUALITY: "fd classifier ↓", "range": "seeds", "precision": "precision ↑",
    "recall": "recall ↑", "nll": "NLL, bits an image", "passes": "passes", "images_per_second": "images a second",
    "speed": "speed, raster = 1 ↑", "parameters": "parameters", "steps": "training steps",
}  # fmt: skip
VERDICTS = {"method": "method", "claim": "claim", "here": "here", "why": "by which numbers"}


def refresh(
    page: Path,
    store: Store,
    runs: Runs,
    first: str,
    costs: Mapping[str, budget.Cost],
    settings: str,
    claims: Mapping[str, Claim | None],
) -> None:
    """Write tables and protocol between the page's marks; plot, samples and CSV go into ``pictures/leaderboard`` beside it.

    Args:
        first: the entry that sets sizes and speed.
        settings: how all entries were trained and sampled, in a sentence.
    """
    rows = table(store, runs, first, costs, claims)
    folder = page.parent / "pictures" / "leaderboard"
    names = [run.name for each in runs.values() for run in each]
    judged = compare.leaderboard(store, [runs[str(row["method"])][0].name for row in rows])
    compare.write(store, judged, folder)
    points = [(str(row["method"]), float(row["speed"]), float(row[QUALITY])) for row in rows]
    with atomic(folder / "leaderboard.png") as file:
        file.write(plots.scatter(points, "speed of sampling, raster = 1", f"{QUALITY} (lower is better)"))
    with atomic(folder / "leaderboard.json") as file:
        file.write((json.dumps({"rows": rows, "settings": settings, "runs": names}, indent=1) + "\n").encode())
    protocol = store.record(store.resolve(str(judged[0]["evaluation"]), "evaluation")).notes["protocol"]
    reference = protocol["reference"]
    several = [f"`{name}`" for name, each in runs.items() if len(each) > 1]
    spread = f"Three seeds: {', '.join(several)}; the others have one, with the spread of these." if several else ""
    about = f"""\
Every entry has about {costs[first].parameters:,} parameters; {settings}
Judged by {protocol["samples"]} samples against {reference["images"]} held-out images (sha256 `{reference["sha256"]}`) with the
features of a classifier of the same data, so the distance is no FID. {spread} A claim is held or not where an interval of {CONFIDENCE:.0%}
says so, else undecided. NLL compares within one tokenizer only, and is left out where a method has no likelihood. Images a second are of
processor time on one core, guided, 100 at once; the speed beside it is the ratio to `{first}` sampled in turn with it."""
    claimed = [row for row in rows if row["here"]]
    block = "\n".join([about, "", markdown(rows, NUMBERS), "### The papers' claims", "", markdown(claimed, VERDICTS)])
    between(page, BEGIN, END, block)

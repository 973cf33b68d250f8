"""``runs`` and ``show``: what there is in the store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli import numbers
from tokenloom.flows.cli.look import run_name
from tokenloom.flows.cli.options import emit, epilog, json_option, place_options, workspace
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.costs import took
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.lineage import lineage_of
from tokenloom.tasks.training.curves import under_way
from tokenloom.tasks.training.verdict import verdict

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Artifact, Store

#: Metrics that tell runs apart at a glance, as far as a run has them.
GLANCE = ("fd_classifier", "fid", "precision", "recall", "recognition", "nll_bits_per_image")


_CLASSES = 20  # names that `show` prints; --json has all


@click.command(epilog=epilog("tokenloom runs", "tokenloom runs --price 2.5", "tokenloom runs --json"))
@place_options
@click.option("--price", type=float, metavar="P", help="Price of one worker's hour of training, for what each run has cost.")
@json_option
def runs(root: str | None, store: str | None, price: float | None, as_json: bool) -> None:
    """The runs in the store: how far each is, what it took, and its numbers."""
    from tokenloom.flows.screen import table

    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"--price {price}: give the price of an hour, 0 or more")
    work = workspace("tokenloom", root, store)
    rows = _runs(work.store, price)
    if as_json:
        emit({"runs": rows})
        return
    if not rows:
        click.echo(f"no runs yet in {work.store.uri}; start one: tokenloom run digits_var")
        return
    shown = [
        [r["name"], _progress(r), r["created"][:16].replace("T", " "), r["generator"], *_taken(r), _glance(r["metrics"])] for r in rows
    ]
    head = ["run", "has", "last", "newest generator", "time", "cost", "metrics"]
    filled = [at for at, name in enumerate(head) if name != "cost" or any(row[at] for row in shown)]
    table("", [head[at] for at in filled], [[row[at] for at in filled] for row in shown])


def _runs(store: Store, price: float | None) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}

    def row_of(name: str, created: str) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "name": name,
            "generator": None,
            "artifacts": {},
            "metrics": {},
            "training": None,
            "seconds": 0.0,
            "worker_hours": 0.0,
        }
        row = rows.setdefault(name, empty)
        row["created"] = created
        return row

    for record in store.records():  # oldest first: the newest of each kind stays
        if record.artifact.kind == "features":
            continue
        row = row_of(record.artifact.name, record.created)
        row["artifacts"][record.artifact.kind] = record.artifact.id
        row["seconds"] += record.seconds
        row["worker_hours"] += record.metrics.get("train_seconds", 0.0) * record.metrics.get("workers", 1) / 3600
        if record.artifact.kind == "generator":
            row["generator"] = record.artifact.id
        if record.artifact.kind == "evaluation":
            row["metrics"] = record.metrics
    for artifact in store.unfinished("tokenizer", "generator", "density"):
        if (begun := under_way(store.storage, artifact.folder)) is not None:
            working = store.leased(f"{artifact.kind}-{artifact.fingerprint}")
            row = row_of(artifact.name, rows.get(artifact.name, {}).get("created", ""))
            row["training"] = begun | {"artifact": f"{artifact.kind}/{artifact.id}", "working": working}
    for row in rows.values():
        row["stage"] = ", ".join(row["artifacts"])
        row["cost"] = None if price is None else price * row["worker_hours"]
    return sorted(rows.values(), key=lambda r: (r["training"] is not None, r["created"]), reverse=True)


def _progress(row: dict[str, Any]) -> str:
    """What a run has, and how far its training is if one has begun."""
    begun = row["training"]
    if begun is None:
        return str(row["stage"])
    state = "working" if begun["working"] else "stopped; the same command goes on"
    share = f" ({begun['done'] / begun['steps']:.0%})" if begun["steps"] else ""
    return f"{row['stage'] or 'no artifact yet'}; {begun['step']} {begun['done']:,}/{begun['steps']:,}{share}, {state}"


def _taken(row: dict[str, Any]) -> tuple[str, str]:
    """How long a run's steps took, and what its trainings cost: money where a price is given, hours of a worker else."""
    money = f"{row['cost']:,.2f}" if row["cost"] is not None else f"{row['worker_hours']:.3g} worker h"
    return took.length(row["seconds"]), money if row["worker_hours"] else ""


def _glance(metrics: dict[str, Any]) -> str:
    return "  ".join(f"{name} {metrics[name]:.4g}" for name in GLANCE if isinstance(metrics.get(name), (int, float)))


@click.command(
    epilog=epilog(
        "tokenloom show digits_var",
        "tokenloom show digits_var --rejected",
        "tokenloom show generator/digits-var-1a2b3c4d5e6f",
        "tokenloom show 1a2b",
    )
)
@click.argument("reference", metavar="RUN|ARTIFACT")
@place_options
@click.option("--rejected", is_flag=True, help="What ingest could not use of the data, by reason.")
@click.option("--all", "everything", is_flag=True, help="All numbers, not only the ten that matter most.")
@json_option
def show(reference: str, root: str | None, store: str | None, rejected: bool, everything: bool, as_json: bool) -> None:
    """One run or artifact: status, the numbers that matter, lineage both ways, pictures."""
    work = workspace("tokenloom", root, store)
    found = _find(work.store, reference)
    if rejected:
        _show_rejected(work.store, reference, found, as_json)
        return
    described = [_describe(work.store, artifact) for artifact in found]
    if as_json:
        emit({"reference": reference, "artifacts": described})
        return
    for one, artifact in zip(described, found):
        one["first"] = _order(work.store, artifact)
        _print(one, everything)


def _find(store: Store, reference: str) -> list[Artifact]:
    """The newest artifact of each kind of a run, or the one artifact that is meant."""
    name = run_name(reference)
    newest: dict[str, Artifact] = {}
    for record in store.records():
        if record.artifact.name == name:
            newest[record.artifact.kind] = record.artifact
    return list(newest.values()) or [store.resolve(reference)]


def _show_rejected(store: Store, reference: str, found: list[Artifact], as_json: bool) -> None:
    """What ingest could not use: each reason with its items."""
    from tokenloom.tasks.data.matching import read_table

    dataset = next((artifact for artifact in found if artifact.kind == "dataset"), None)
    if dataset is None:
        raise ConfigError(f"show {reference} --rejected: it has no dataset; give a run's name or a dataset")
    rows = read_table(store, store.record(dataset), "quarantine.parquet")
    if as_json:
        rejects = [{"source": row["source"], "reason": row["reason"], "again": bool(row.get("retry"))} for row in rows]
        emit({"reference": reference, "dataset": dataset.id, "rejected": rejects})
        return
    click.secho(f"dataset/{dataset.id}: {len(rows):,} rejected", bold=True)
    reasons: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        reasons.setdefault(row["reason"], []).append(row)
    for reason, mine in sorted(reasons.items(), key=lambda each: -len(each[1])):
        again = "; read again by the next ingest" if mine[0].get("retry") else ""
        click.echo(f"{len(mine):,} x {reason}{again}")
        for row in mine[:_CLASSES]:
            click.echo(f"  {row['source']}")
        if len(mine) > _CLASSES:
            click.echo(f"  … and {len(mine) - _CLASSES:,} more; --json has all")


def _order(store: Store, artifact: Artifact) -> Sequence[str]:
    """The numbers of this kind of artifact that matter most, in order."""
    if artifact.kind != "evaluation":
        return numbers.TRAINED if artifact.kind in ("tokenizer", "generator", "density") else ()
    inputs = store.record(artifact).inputs
    try:
        return modalities.of(store.record(inputs["dataset"]).notes).comparison.columns
    except (ArtifactError, KeyError):
        return ()


def _describe(store: Store, artifact: Artifact) -> dict[str, Any]:
    record, lineage = store.record(artifact), lineage_of(store, artifact)
    inside = f"{artifact.folder}/"
    return {
        "id": f"{artifact.kind}/{artifact.id}",
        "uri": artifact.uri,
        "status": "complete" if not (problems := store.verify(artifact)) else "damaged",
        "problems": problems,
        "created": record.created,
        "seconds": record.seconds,
        "config": record.config,
        "metrics": record.metrics,
        "verdict": verdict(record.metrics),
        "took": took.row(record),
        "classes": list(record.notes.get("classes", ())),
        "made from": {role: f"{a.kind}/{a.id}" for role, a in record.inputs.items()},
        "ancestors": [f"{a.kind}/{a.id}" for a in lineage["ancestors"]],
        "descendants": [f"{a.kind}/{a.id}" for a in lineage["descendants"]],
        "pictures": [store.storage.uri(f["path"]) for f in record.files if f["path"].startswith(inside) and f["path"].endswith(".png")],
        "files": len(record.files),
        "bytes": sum(f["size"] for f in record.files),
        "versions": record.versions,
        "commit": record.commit,
    }


def _print(one: dict[str, Any], everything: bool = False) -> None:
    from tokenloom.flows.screen import clock, packed, width

    columns = width()
    click.secho(one["id"], bold=True)
    made, size = one["created"][:19].replace("T", " "), one["bytes"] / 1e6
    status = f"{one['status']}, made {made} UTC in {clock(one['seconds'])}, {one['files']} files, {size:.2f} MB"
    for line in (*packed([status], columns), *(line for problem in one["problems"] for line in packed([f"problem: {problem}"], columns))):
        click.echo(line)
    click.echo(f"  at {one['uri']}")
    first, rest = numbers.split(one["metrics"], one["first"])
    for line in packed(
        [numbers.written(name, one["metrics"][name]) for name in (first + rest if everything else first)], min(columns, 110)
    ):
        click.echo(line)
    if rest and not everything:
        click.echo(f"  and {len(rest)} more numbers: --all")
    if one["verdict"]:
        click.echo("\n".join(packed([one["verdict"]], columns)))
    if one["classes"]:
        shown = ", ".join(one["classes"][:_CLASSES]) + (", …" if len(one["classes"]) > _CLASSES else "")
        click.echo("\n".join(packed([f"{len(one['classes'])} classes: {shown}"], columns)))
    for label in ("ancestors", "descendants"):
        if one[label]:
            click.echo("\n".join(packed([f"{label}: {', '.join(one[label])}"], columns)))
    for picture in one["pictures"]:
        click.echo(f"  picture: {picture}")
    click.echo("")

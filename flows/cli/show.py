"""``runs`` and ``show``: what there is in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.look import run_name
from tokenloom.flows.cli.options import emit, epilog, json_option, place_options, workspace
from tokenloom.tasks.store.lineage import lineage_of

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Artifact, Record, Store

#: Metrics that tell runs apart at a glance, as far as a run has them.
GLANCE = ("fd_classifier", "fid", "precision", "recall", "recognition", "nll_bits_per_image")


_CLASSES = 20  # names that `show` prints; --json has all


@click.command(epilog=epilog("tokenloom runs", "tokenloom runs --json"))
@place_options
@json_option
def runs(root: str | None, store: str | None, as_json: bool) -> None:
    """The runs in the store: how far each is, its newest artifacts and its numbers."""
    from tokenloom.flows.screen import table

    work = workspace("tokenloom", root, store)
    rows = _runs(work.store.records())
    if as_json:
        emit({"runs": rows})
        return
    if not rows:
        click.echo(f"no runs yet in {work.store.uri}; start one: tokenloom run digits_var")
        return
    shown = [[r["name"], r["stage"], r["created"][:16].replace("T", " "), r["generator"], _glance(r["metrics"])] for r in rows]
    table("", ["run", "has", "last", "newest generator", "metrics"], shown)


def _runs(records: list[Record]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for record in records:  # oldest first: the newest of each kind stays
        if record.artifact.kind == "features":
            continue
        row = rows.setdefault(record.artifact.name, {"name": record.artifact.name, "generator": None, "artifacts": {}, "metrics": {}})
        row["artifacts"][record.artifact.kind] = record.artifact.id
        row["created"] = record.created
        row["stage"] = ", ".join(row["artifacts"])
        if record.artifact.kind == "generator":
            row["generator"] = record.artifact.id
        if record.artifact.kind == "evaluation":
            row["metrics"] = record.metrics
    return sorted(rows.values(), key=lambda r: r["created"], reverse=True)


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
@json_option
def show(reference: str, root: str | None, store: str | None, rejected: bool, as_json: bool) -> None:
    """One run or artifact: status, numbers, lineage both ways, pictures."""
    work = workspace("tokenloom", root, store)
    found = _find(work.store, reference)
    if rejected:
        _show_rejected(work.store, reference, found, as_json)
        return
    described = [_describe(work.store, artifact) for artifact in found]
    if as_json:
        emit({"reference": reference, "artifacts": described})
        return
    for one in described:
        _print(one)


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
    from tokenloom.models.core.config import ConfigError
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


def _print(one: dict[str, Any]) -> None:
    from tokenloom.flows.screen import clock, packed, width

    columns = width()
    click.secho(one["id"], bold=True)
    made, size = one["created"][:19].replace("T", " "), one["bytes"] / 1e6
    status = f"{one['status']}, made {made} UTC in {clock(one['seconds'])}, {one['files']} files, {size:.2f} MB"
    for line in (*packed([status], columns), *(line for problem in one["problems"] for line in packed([f"problem: {problem}"], columns))):
        click.echo(line)
    click.echo(f"  at {one['uri']}")
    numbers = [
        f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in one["metrics"].items() if isinstance(v, (int, float, str))
    ]
    for line in packed(numbers, min(columns, 110)):
        click.echo(line)
    if one["classes"]:
        shown = ", ".join(one["classes"][:_CLASSES]) + (", …" if len(one["classes"]) > _CLASSES else "")
        click.echo("\n".join(packed([f"{len(one['classes'])} classes: {shown}"], columns)))
    for label in ("ancestors", "descendants"):
        if one[label]:
            click.echo("\n".join(packed([f"{label}: {', '.join(one[label])}"], columns)))
    for picture in one["pictures"]:
        click.echo(f"  picture: {picture}")
    click.echo("")

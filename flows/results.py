"""What a run has made, for people and for programs: the table of steps, pictures, the model, where to look."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloom.configs.schema import RunConfig
from tokenloom.flows.screen import Done, clock, table
from tokenloom.tasks.costs import took

if TYPE_CHECKING:
    from tokenloom.flows.planning import Planned
    from tokenloom.flows.workspace import Workspace
    from tokenloom.tasks.store.artifacts import Artifact, Store

#: Pictures in the order in which a person wants them.
FIRST = ("samples", "reconstructions", "nearest", "codebook", "curves")


def pictures(store: Store, evaluation: Artifact | None) -> dict[str, Path]:
    """Name to local file of the pictures of an evaluation; those of a remote store are fetched."""
    if evaluation is None:
        return {}
    prefix = f"{evaluation.folder}/"
    files = [f["path"].removeprefix(prefix) for f in store.record(evaluation).files if f["path"].endswith(".png")]
    if not files:
        return {}
    folder = store.fetch(evaluation, *files)
    named = {Path(file).stem: folder / file for file in files}
    order = [name for name in FIRST if name in named] + sorted(set(named) - set(FIRST))
    return {name: named[name] for name in order}


def where(work: Workspace, evaluation: Artifact | None) -> dict[str, str]:
    """Where to look: label to path, address or command."""
    shown = pictures(work.store, evaluation)
    places = {"samples": str(shown["samples"])} if "samples" in shown else {}
    if shown:
        places["more pictures"] = str(next(iter(shown.values())).parent)
    places["MLflow"] = work.tracker.shown
    places["UIs"] = f"tokenloom ui{_root_option(work)}"
    return places


def _root_option(work: Workspace) -> str:
    from tokenloom.flows.workspace import ROOT

    return "" if work.root == Path(ROOT).absolute() else f" --root {shlex.quote(str(work.root))}"


def steps_of(planned: tuple[Planned, ...]) -> list[Done]:
    """The steps of a run in which everything was cached."""
    return [Done(one.name, "cached", one.artifact) for one in planned]


def summary(work: Workspace) -> str:
    """What a run has done, in one sentence: nothing, or which steps ran and what became of the alias."""
    ran = [each.name for each in work.done if each.status == "ran"]
    if not ran:
        return "nothing to do: the source holds nothing new, and every artifact is there"
    summary = f"ran {', '.join(ran)}"
    if "register" in ran:
        registered = _registered(work, work.artifact("register"))
        summary += f"; {registered['uri']} {'is champion' if registered['promoted'] else 'stays challenger'}: {registered['reason']}"
    return summary


def document(config: RunConfig, work: Workspace, done: list[Done], error: str | None = None) -> dict[str, Any]:
    """The JSON document of ``tokenloom run --json``: ``steps``, ``pictures``, ``model`` (of the registry), and ``error`` if it failed."""
    made = {each.name: each.artifact for each in done}
    registered, evaluation = _registered(work, made.get("register")), made.get("evaluate")
    return {
        "run": config.name,
        "steps": [each.row() for each in done],
        "pictures": [str(path) for path in pictures(work.store, evaluation).values()],
        "model": registered.get("uri"),
        "registered": registered,
        "took": {each.name: took.row(work.store.record(each.artifact)) for each in done if each.artifact},
        "metrics": dict(work.store.record(evaluation).metrics) if evaluation else {},
    } | ({"error": error} if error else {})


def _registered(work: Workspace, registration: Artifact | None) -> dict[str, Any]:
    """What the registration says: name, version, uri, aliases and why it is champion or not."""
    return dict(work.store.record(registration).metrics) if registration else {}


def show(config: RunConfig, work: Workspace, done: list[Done]) -> None:
    """Print the table of steps and where to look."""
    rows = [[each.name, each.status, clock(each.seconds) if each.status != "cached" else "", _reference(each)] for each in done]
    table(config.name, ["step", "status", "time", "artifact"], rows)
    if ran := [each for each in done if each.status == "ran" and each.artifact]:
        taken = [[each.name, *took.cells(took.row(work.store.record(each.artifact)))] for each in ran if each.artifact]
        filled = [at for at in range(len(taken[0])) if any(row[at] for row in taken)]
        head = ["what it took", *took.COLUMNS]
        table("", [head[at] for at in filled], [[row[at] for at in filled] for row in taken])
    evaluation = next((each.artifact for each in done if each.name == "evaluate"), None)
    registered = _registered(work, next((each.artifact for each in done if each.name == "register"), None))
    if registered:
        print(f"model: {registered['uri']} ({', '.join(registered['aliases'])}: {registered['reason']})")
    for what, place in where(work, evaluation).items():
        print(f"{what}: {place}")


def _reference(done: Done) -> str:
    return f"{done.artifact.kind}/{done.artifact.id}" if done.artifact else done.error or ""

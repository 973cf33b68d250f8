"""What Prefect's UI shows of a run: the plan as a table, the results, the pictures, and the way to MLflow.

Nothing here may stop a run: a page that cannot be written costs a log line.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact

from tokenloom.configs.schema import RunConfig
from tokenloom.flows.planning import Planned
from tokenloom.flows.results import pictures, where
from tokenloom.flows.screen import clock
from tokenloom.flows.workspace import Workspace

log = logging.getLogger(__name__)
_LARGEST = 400_000  # bytes of a picture that is carried inside the page


def plan(config: RunConfig, planned: tuple[Planned, ...]) -> None:
    """The plan: each step, cached or not, and why."""
    rows = [{"step": one.name, "status": one.status, "fingerprint": one.fingerprint or "", "why": one.reason} for one in planned]
    with _quietly():
        create_table_artifact(rows, key=_key(config.name, "plan"), description="What this run does and why")


def results(config: RunConfig, work: Workspace) -> None:
    """Steps, numbers, pictures and where to look."""
    with _quietly():
        create_markdown_artifact(_markdown(config, work), key=_key(config.name, "results"), description="Steps and numbers")
    for name, path in pictures(work.store, work.artifact("evaluate")).items():
        with _quietly():
            data = path.read_bytes()
            if len(data) <= _LARGEST:
                url = "data:image/png;base64," + base64.b64encode(data).decode()
                create_image_artifact(url, key=_key(config.name, name), description=str(path))
    address = work.tracker.shown
    if address.startswith("http"):
        with _quietly():
            create_link_artifact(address, key=_key(config.name, "mlflow"), link_text=f"Experiment {config.name} in MLflow")


def _markdown(config: RunConfig, work: Workspace) -> str:
    lines = [f"# {config.name}", "", "| step | status | time | artifact |", "|---|---|---|---|"]
    for done in work.done:
        made = f"`{done.artifact.kind}/{done.artifact.id}`" if done.artifact else done.error or ""
        lines.append(f"| {done.name} | {done.status} | {clock(done.seconds)} | {made} |")
    numbers = next((d.metrics for d in work.done if d.name == "evaluate"), {})
    if numbers:
        lines += ["", "| metric | value |", "|---|---|", *(f"| {k} | {_number(v)} |" for k, v in sorted(numbers.items()) if _plain(v))]
    lines += ["", *(f"- {what}: `{place}`" for what, place in where(work, work.artifact("evaluate")).items())]
    return "\n".join(lines)


def _plain(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _key(*parts: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        log.warning("Prefect page not written: %s", error)

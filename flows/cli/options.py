"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tokenloom.flows.workspace import Workspace

EXIT_FAILED, EXIT_USAGE, EXIT_AGAIN, EXIT_INTERRUPTED = 1, 2, 75, 130


def place_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--root`` and ``--store``; the command receives them as ``root`` and ``store``."""
    function = click.option(
        "--store", envvar="TOKENLOOM_STORE", metavar="URI", help="Folder or s3://bucket/prefix of the artifacts [default: ROOT/store]."
    )(function)
    return click.option("--root", envvar="TOKENLOOM_ROOT", metavar="FOLDER", help="Databases, logs and caches [default: .tokenloom].")(
        function
    )


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--cluster``: where a run works."""
    return click.option("--cluster", metavar="FILE", help="Where to run: a name in configs/clusters or a YAML file [default: laptop].")(
        function
    )


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument RUN and ``--set``."""
    function = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="PATH=VALUE",
        help="Change a field of the run file, e.g. generator.train.steps=2000; cluster.… changes the cluster file. Repeatable.",
    )(function)
    return click.argument("run")(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``: one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout; progress stays on stderr.")(function)


def emit(document: Any) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(document, indent=1, allow_nan=False, default=str))


def epilog(*lines: str) -> str:
    """Examples under a command's help, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def workspace(name: str, root: str | None, store: str | None, cluster: Any = None) -> Workspace:
    """The surroundings of a command, with logs going to a file, quiet libraries and a cluster file without a login in it."""
    from tokenloom.flows import environment
    from tokenloom.flows.workspace import Workspace
    from tokenloom.tasks.tracking import addresses

    if cluster is not None:
        cluster = cluster.model_copy(update={"tracking_uri": addresses.unnamed(cluster.tracking_uri)})
    work = Workspace.open(name, root, store, cluster)
    environment.prepare(work.root)
    environment.log_to(work.root)
    return work

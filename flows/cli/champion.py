"""``promote`` and ``rollback``: the champion moved by a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, workspace

if TYPE_CHECKING:
    from tokenloom.flows.workspace import Workspace
    from tokenloom.tasks.tracking.registry import Registry

_WHY = click.option("--why", required=True, help="The reason, for whoever asks later.")
_WHO = click.option("--who", help="Who decides [default: your user name].")


@click.command(epilog=epilog('tokenloom promote models:/digits-var/3 --why "looks better to people"'))
@click.argument("version", metavar="NAME/VERSION")
@_WHY
@_WHO
@place_options
@cluster_options
@json_option
def promote(version: str, why: str, who: str | None, root: str | None, store: str | None, cluster: str | None, as_json: bool) -> None:
    """Make a registered version the champion, whatever the gate said; who and why are kept in the registry.

    The next run that registers is judged against it.
    """
    from tokenloom.models.core.config import ConfigError
    from tokenloom.tasks.tracking import champion

    name, _, number = version.removeprefix("models:/").rpartition("/")
    if not name or not number.isdigit():
        raise ConfigError(f"promote {version}: give NAME/VERSION, e.g. digits-var/3")
    registry, work = _opened(root, store, cluster)
    _say(name, champion.promote(registry, work.store, name, number, why, who), as_json)


@click.command(epilog=epilog('tokenloom rollback digits-var --why "version 4 repeats a training image"'))
@click.argument("name")
@_WHY
@_WHO
@place_options
@cluster_options
@json_option
def rollback(name: str, why: str, who: str | None, root: str | None, store: str | None, cluster: str | None, as_json: bool) -> None:
    """Make the champion before the present one the champion again; who and why are kept in the registry."""
    from tokenloom.tasks.tracking import champion

    name = name.removeprefix("models:/").partition("@")[0]
    registry, work = _opened(root, store, cluster)
    _say(name, champion.rollback(registry, work.store, name, why, who), as_json)


def _opened(root: str | None, store: str | None, cluster: str | None) -> tuple[Registry, Workspace]:
    from tokenloom.configs.load import load_cluster
    from tokenloom.tasks.tracking.registry import Registry

    work = workspace("tokenloom", root, store, load_cluster(cluster))
    registry = Registry(work.tracker)
    registry.check()
    return registry, work


def _say(name: str, move: dict[str, object], as_json: bool) -> None:
    from tokenloom.tasks.tracking import champion

    if as_json:
        emit({"name": name} | move)
    else:
        click.echo(champion.line(name, move))

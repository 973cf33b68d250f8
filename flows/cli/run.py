"""``run``, ``plan`` and ``serve``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, run_options, workspace

if TYPE_CHECKING:
    from tokenloom.configs.schema import RunConfig
    from tokenloom.flows.screen import Done, Screen
    from tokenloom.flows.workspace import Workspace


@click.command(
    epilog=epilog(
        "tokenloom run digits_var",
        "tokenloom run digits_var --set generator.args.depth=6 --set generator.train.steps=3000",
        "tokenloom run my_run.yaml --store s3://bucket/prefix --cluster gpu",
        "tokenloom run digits_var --set 'tokenizer={use: digits-var}'",
    )
)
@run_options
@place_options
@cluster_options
@click.option("--only", metavar="STEP", help="Run one step (a name from tokenloom plan RUN) with what the store holds.")
@click.option("--until", metavar="STEP", help="Run the steps up to this one (without Prefect).")
@click.option("--no-prefect", is_flag=True, help="Run the same chain without Prefect.")
@json_option
def run(
    run: str,
    sets: tuple[str, ...],
    root: str | None,
    store: str | None,
    cluster: str | None,
    only: str | None,
    until: str | None,
    no_prefect: bool,
    as_json: bool,
) -> None:
    """The whole pipeline: raw images in, an evaluated, registered model out.

    RUN is a name in configs/runs or a path to YAML. Every step looks first whether what it would make is in the store; a
    second run of the same recipe does nothing. Kill it at any moment: the same command goes on where it was.
    """
    from tokenloom.configs.load import load_cluster, load_run
    from tokenloom.flows import planning, results
    from tokenloom.flows.screen import screen
    from tokenloom.models.core.config import ConfigError

    config = load_run(run, sets)
    work = workspace(config.name, root, store, load_cluster(cluster, sets))
    planned = planning.plan(config, work.store, work.tracker.uri)
    there = [one.name for one in planned]
    for option, step in (("--only", only), ("--until", until)):
        if step and step not in there:
            raise ConfigError(f"{option} {step}: run {config.name} has no step {step}; it has: {', '.join(there)}")
    if only and until:
        raise ConfigError(f"--only {only} and --until {until}: give one of them")
    wanted = planned[: there.index(until) + 1] if until else planned
    if all(one.status == "cached" for one in wanted):
        work.tracker.sync()  # what an absent server has missed; nothing is loaded when there is nothing to send
        done = results.steps_of(wanted)
        if as_json:
            emit(results.document(config, work, done))
        else:
            results.show(config, work, done)
        return
    work.check()
    planning.check(config, work.store, planned)
    with screen() as shown:
        _say_plan(planned, shown)
        error: str | None = None
        try:
            with redirect_stdout(sys.stderr):  # what libraries say (Ray, of a node that died) is no part of the result
                _execute(config, work, only, until, no_prefect, shown)
        except BaseException as problem:
            error = str(problem) or type(problem).__name__
            raise
        finally:
            _finish(config, work, shown.steps, as_json, error)


def _say_plan(planned: tuple[Any, ...], shown: Screen) -> None:
    for one in planned:
        shown.say(f"{one.name}: {one.status} {one.fingerprint or ''}  {one.reason}".rstrip())


def _execute(config: RunConfig, work: Workspace, only: str | None, until: str | None, no_prefect: bool, shown: Screen) -> None:
    from tokenloom.flows import pipeline, prefect_api, steps

    prefect = not no_prefect and not until and prefect_api.reachable(shown.warn, work.root)
    where: dict[str, Any] = {"cluster": work.cluster, "root": str(work.root), "store": work.store_uri}
    if only and prefect:
        steps.flow_of(only)(config, **where)
    elif only:
        steps.run_alone(only, config, work)
    elif prefect:
        pipeline.pipeline(config, **where)
    else:
        pipeline.run(config, work, until)


def _finish(config: RunConfig, work: Workspace, done: list[Done], as_json: bool, error: str | None) -> None:
    from tokenloom.flows import results

    if as_json:
        emit(results.document(config, work, done, error))
    elif done:
        results.show(config, work, done)


@click.command(epilog=epilog("tokenloom plan digits_var", "tokenloom plan digits_var --set generator.args.depth=6"))
@run_options
@place_options
@cluster_options
@click.option("--accelerator", default="H100", show_default=True, metavar="NAME", help="What the hours are for: an accelerator, or cpu.")
@click.option("--price", type=float, metavar="P", help="Price of one accelerator's hour, for what the trainings cost.")
@click.option("--items", type=int, metavar="N", help="Training items, for epochs of data that is not there yet.")
@json_option
def plan(
    run: str,
    sets: tuple[str, ...],
    root: str | None,
    store: str | None,
    cluster: str | None,
    accelerator: str,
    price: float | None,
    items: int | None,
    as_json: bool,
) -> None:
    """What `run` would do, why, and what it would cost, running nothing.

    Shows each step, its fingerprint, whether its artifact is in the store, and else which change makes it run; then the
    parameters, operations, memory and hours of each training.
    """
    from tokenloom.configs.load import load_cluster, load_run
    from tokenloom.flows import costs as cost
    from tokenloom.flows import planning
    from tokenloom.flows.screen import packed, table, width

    config = load_run(run, sets)
    cost.accelerator_named(accelerator)
    where = load_cluster(cluster, sets)
    work = workspace(config.name, root, store, where)
    planned = planning.plan(config, work.store, work.tracker.uri)
    if any(one.status != "cached" for one in planned):
        planning.check(config, work.store, planned)
    trainings = planning.published_trainings(config)
    costs = cost.costs(config, work.store, planning.roles(config, work.store, planned), where.execution, accelerator, price, items)
    if as_json:
        steps = [one.row() for one in planned]
        emit({"run": config.name, "steps": steps, "published_trainings": trainings, "cost": cost.totals(costs)})
        return
    table(config.name, ["step", "status", "fingerprint", "why"], [[o.name, o.status, o.fingerprint, o.reason] for o in planned])
    if costs:
        table("what the trainings cost", *cost.cells(costs))
    for one in trainings:
        train = one["train"]
        said = [f"{one['section']} trains as published: {one['length']} of batch {train['batch']}, {train['precision']}"]
        for phase, optimizer in {"": train["optimizer"], **train.get("phases", {})}.items():
            settings = [f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in optimizer.items()]
            said.append(f"{phase or 'optimizer'}: {', '.join(settings)}")
        said += [f"{what}: {'; '.join(one[what])}" for what in ("augmentation", "departs") if one[what]]
        for at, text in enumerate(said):
            for line in packed([text], width(), indent="  " if at else ""):
                click.echo(line)


@click.command(epilog=epilog('tokenloom serve digits_var --cron "0 3 * * *"'))
@run_options
@place_options
@cluster_options
@click.option("--cron", required=True, metavar='"M H D M W"', help='When to retrain, e.g. "0 3 * * *" for every night at three.')
def serve(run: str, sets: tuple[str, ...], root: str | None, store: str | None, cluster: str | None, cron: str) -> None:
    """Retrain on a schedule: a Prefect deployment that this process serves until it is stopped.

    One flow run at a time. What has not changed since the last time is not done again. Without PREFECT_API_URL a Prefect
    server is started on loopback for as long as this command runs.
    """
    from tokenloom.configs.load import load_cluster, load_run
    from tokenloom.flows import planning

    config = load_run(run, sets)
    work = workspace(config.name, root, store, load_cluster(cluster, sets))
    work.check()
    planning.check(config, work.store, planning.plan(config, work.store))
    from tokenloom.flows import prefect_api

    prefect_api.serve(config, work, cron)

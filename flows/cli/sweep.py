"""``sweep``: settings of a run tried out."""

from __future__ import annotations

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, run_options, workspace


@click.command(
    epilog=epilog(
        "tokenloom sweep digits_var --set generator.train.optimizer.lr=1e-4..1e-2:log --set generator.args.depth=2..6 --trials 20",
        "tokenloom sweep digits_var --set 'generator.recipe=var|raster' --metric recognition --trials 2",
    )
)
@run_options
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="How many are tried, those of earlier calls included."
)
@click.option("--metric", metavar="NAME", help="What is looked for [default: what leaderboards rank by].")
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Trials at once; on a cluster, as many as it has room for."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the proposals.")
@click.option("--whole", is_flag=True, help="Let every trial run to its end.")
@place_options
@cluster_options
@json_option
def sweep(
    run: str,
    sets: tuple[str, ...],
    trials: int,
    metric: str | None,
    jobs: int,
    seed: int,
    whole: bool,
    root: str | None,
    store: str | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Try out settings of a run: ranges and choices among the --set options.

    PATH=LOW..HIGH is a range (:log behind it for powers; whole numbers stay whole), PATH=A|B|C are values to choose from; other --set
    options are edits as ever. Each trial is a normal run up to its evaluation: what trials share is made once. Trials that fall behind the
    median are stopped early. The same command goes on where it was. Ends in a table, a plot of importance, and best.yaml to run.
    """
    from tokenloom.flows import sweep as sweeps
    from tokenloom.flows.screen import table
    from tokenloom.tasks.costs.took import length

    workspace("tokenloom", root, store)  # logs go to a file
    made = sweeps.opened(run, sets, metric, root, store, cluster, not whole)
    made.say = lambda text: click.echo(text, err=True)
    document = made.carry_out(trials, jobs, seed)
    if as_json:
        emit(document)
        return
    rows = [
        [row["number"], row["state"], "" if row["value"] is None else f"{row['value']:.5g}", length(row["seconds"] or 0.0), *_values(row)]
        for row in document["trials"]
    ]
    paths = [axis.path for axis in made.axes]
    metric_name = next((row["metric"] for row in document["trials"] if row["metric"]), "value")
    table(f"sweep {document['sweep']}", ["trial", "state", metric_name, "time", *paths, "shared"], rows)
    if document["best"]:
        best = document["best"]
        click.echo(f"best: trial {best['number']}, {best['metric']} {best['value']:.5g}; run it: tokenloom run {best['run']}")
    for name, share in document["importance"].items():
        click.echo(f"importance of {name}: {share:.0%}")
    if "picture" in document:
        click.echo(f"plot: {document['picture']}")


def _values(row: dict[str, object]) -> list[str]:
    """The values of a trial's settings, and the steps that it shared with others."""
    sets, steps = row["sets"], row["steps"]
    assert isinstance(sets, list)
    shared = [name for name, status in steps.items() if status == "cached"] if isinstance(steps, dict) else []
    return [*(text.partition("=")[2] for text in sets), ", ".join(shared)]

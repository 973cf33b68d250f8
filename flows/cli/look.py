"""``methods``, ``decoders`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.options import emit, epilog, json_option, place_options, workspace

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Store


@click.command(epilog=epilog("tokenloom methods", "tokenloom methods var", "tokenloom methods --json"))
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """The family: every method by its kind, and the part that it has on each axis; of one NAME, its published sizes.

    A size is written args: {size: NAME} in a run file.
    """
    from tokenloom.flows.screen import table
    from tokenloom.models.core import registry

    if name is not None:
        text, columns, cells = registry.described(name)
        if as_json:
            emit(next({"method": row} for row in registry.table() if row["name"] == name))
            return
        click.echo(f"{text}\n")
        if cells:
            table(f"{len(cells)} published sizes", columns, cells)
        return
    rows = registry.table()
    if as_json:
        emit({"methods": rows})
        return
    for kind, (columns, cells) in registry.tables().items():
        table(f"{kind}: {len(cells)}", columns, cells)


@click.command(epilog=epilog("tokenloom decoders", "tokenloom decoders --json"))
@json_option
def decoders(as_json: bool) -> None:
    """Ways to decode: whether samples are distributed as without it, what it needs, its paper.

    One is chosen when sampling, `sample MODEL --decode NAME --set FIELD=VALUE`, or in a run file, `sample: {decoder: {NAME: {FIELD:
    VALUE}}}`.  What cannot work on a model is refused with the reason before anything is drawn.
    """
    from tokenloom.flows.screen import table
    from tokenloom.models.sampling.decoders import base

    rows = base.table()
    if as_json:
        emit({"decoders": rows})
        return
    cells = [[row["name"], "yes" if row["exact"] else "no", "; ".join(row["needs"]) or "-", row["paper"] or "-"] for row in rows]
    table(f"{len(rows)} ways to decode", ["name", "exact", "needs", "paper"], cells)


@click.command(epilog=epilog("tokenloom compare digits_var digits_raster --out leaderboard.png"))
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder of the plot, sample grids and CSV [default: ROOT/compare]."
)
@place_options
@json_option
def compare(runs: tuple[str, ...], out: Path | None, root: str | None, store: str | None, as_json: bool) -> None:
    """A leaderboard of runs under one protocol: table, plot, sample grids side by side.

    RUN is a run's name (digits_var or digits-var) or an evaluation artifact. NLL is compared only within one tokenizer.
    Tokenizers (runs without a generator) are ranked within equal budgets of bits an image, with their reconstructions.
    """
    from tokenloom.flows.screen import table
    from tokenloom.tasks.evaluation import compare as comparing
    from tokenloom.tasks.evaluation.report import number

    work = workspace("tokenloom", root, store)
    rows = comparing.leaderboard(work.store, [evaluation_of(each, work.store) for each in runs])
    folder = out or work.root / "compare"
    files = comparing.write(work.store, rows, folder)
    if as_json:
        emit({"rows": rows, "files": [str(path) for path in files]})
        return
    for budget, group in comparing.budgets(rows).items():  # tokenizers: a line each
        columns = [key for key in rows[0] if key not in ("budget", "tokenizer", "evaluation")]
        table(f"{budget} an image", [key.replace("_", " ") for key in columns], [[number(row[key]) for key in columns] for row in group])
    if not comparing.budgets(rows):
        _beside(rows)
    for path in files:
        click.echo(str(path))


def _beside(rows: list[dict[str, Any]]) -> None:
    """Generators: a line a measure."""
    from tokenloom.flows.screen import table

    names = [str(row["run"]) for row in rows]
    metrics = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "run"]
    table("", ["", *names], [[key, *(_cell(row.get(key)) for row in rows)] for key in metrics])


def evaluation_of(text: str, store: Store) -> str:
    """The evaluation behind RUN: the one that its run file describes as it stands, if that is there, else the newest of its name."""
    from tokenloom.configs.load import load_run, shipped
    from tokenloom.flows.planning import plan

    if text in shipped("runs") or text.endswith((".yaml", ".yml")):
        made = {one.name: one.artifact for one in plan(load_run(text), store)}["evaluate"]
        if made is not None:
            return made.id
    return run_name(text)


def run_name(text: str) -> str:
    """The artifact name behind RUN: a run file's ``name``, else the text itself."""
    from tokenloom.configs.load import load_run, shipped

    if text in shipped("runs") or text.endswith((".yaml", ".yml")):
        return load_run(text).name
    return text


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

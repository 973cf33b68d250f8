"""``methods``, ``decoders``, ``sample`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, workspace

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


def decoder_of(text: str | None, fields: tuple[str, ...]) -> Any:
    """``--decode NAME`` and the ``--set FIELD=VALUE`` beside it, as a run file has them.

    Raises:
        UsageError: fields without a name, or a text that is no field and value.
    """
    from tokenloom.configs.load import parse_yaml

    value = None if text is None else parse_yaml(text, "--decode")
    if not fields:
        return value
    if not isinstance(value, str):
        raise click.UsageError(f"--set {fields[0]}: goes with --decode NAME, whose field it is")
    given: dict[str, Any] = {}
    for field in fields:
        name, between, worth = field.partition("=")
        if not (name and between and worth):
            raise click.UsageError(f"--set {field!r}: write FIELD=VALUE, e.g. window=8")
        given[name] = parse_yaml(worth, f"--set {name}")
    return {value: given}


def files_by_name(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, list[Path]]:
    """``NAME=FILE`` options as the files of each name."""
    found: dict[str, list[Path]] = {}
    for value in values:
        name, between, file = value.partition("=")
        if not (name and between and file):
            raise click.BadParameter(f"{value!r}: write NAME=FILE, e.g. control=edges.png")
        if not Path(file).is_file():
            raise click.BadParameter(f"{value!r}: no file {file}")
        found.setdefault(name, []).append(Path(file))
    return found


@click.command(
    epilog=epilog(
        "tokenloom sample models:/digits-var@champion --n 100 --out samples.png",
        "tokenloom sample digits-var --classes 3,7 --n 20 --seed 5 --out threes_and_sevens.npz",
        "tokenloom sample pets --classes cat,dog --out pets.png",
        'tokenloom sample digits-text --text "a handwritten seven" --text "a handwritten two" --n 20 --out named.png',
        "tokenloom sample digits-text --prompts geneval.jsonl --guidance 3 --out geneval",
        "tokenloom sample pets-control --column control=edges.png --n 4 --out pets.png",
        "tokenloom sample digits-raster --decode jacobi --set window=8 --out samples.png",
        "tokenloom sample series-co2 --horizon 52 --n 200 --out next_year.png",
    )
)
@click.argument("model")
@click.option("--classes", metavar="NAMES", help="Classes to draw, by name or number, e.g. cat,dog or 0-9 or 1,4 [default: all].")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="A caption to draw, of a text model; may be given again.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=FILE",
    callback=files_by_name,
    help="Of a model with a control image, mask, …: its file; may be given again, and is used in turn [default: those of held-out images].",
)
@click.option(
    "--n",
    "total",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Samples in total, spread evenly over the classes or texts; of each history.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same samples.")
@click.option(
    "--history",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Of a forecaster: a table that ends where it begins, CSV or Parquet [default: held-out windows].",
)
@click.option("--horizon", type=click.IntRange(min=1), help="Of a forecaster: values to forecast [default: the run's].")
@click.option("--inpaint", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="An image of which a part is drawn anew.")
@click.option(
    "--mask", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Of --inpaint: an image that is white where to draw."
)
@click.option(
    "--prompts",
    type=click.Path(exists=True, path_type=Path),
    help="Of a text model: prompts of GenEval (.jsonl), DPG-Bench (.csv, or a folder of .txt), HPS (.json), or one a line (.txt); "
    "--out is then a new folder in that layout, and --out.jsonl beside it records what was drawn how.",
)
@click.option(
    "--rewrites", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Of --prompts: JSON {PROMPT: TEXT TO DRAW INSTEAD}."
)
@click.option("--each", type=click.IntRange(min=1), help="Of --prompts: images a prompt [default: 4 of GenEval and DPG-Bench, else 1].")
@click.option("--guidance", type=click.FloatRange(min=0), help="Classifier-free guidance weight [default: the run's].")
@click.option("--guidance-schedule", type=click.Choice(["constant", "linear", "cosine", "power_cosine"]), help="Guidance over the steps.")
@click.option("--guidance-interval", type=float, nargs=2, metavar="START END", help="Guide between these shares of the decoding alone.")
@click.option("--temperature", type=click.FloatRange(min=0), help="Of the draws [default: the run's].")
@click.option("--temperature-end", type=click.FloatRange(min=0), help="Where temperature ends, in a line from --temperature.")
@click.option("--top-k", type=click.IntRange(min=0), help="Keep the likeliest codes; 0 keeps all [default: the run's].")
@click.option("--top-p", type=click.FloatRange(min=0, max=1), help="Keep the likeliest codes of this probability [default: the run's].")
@click.option("--order", type=click.Choice(["raster", "random", "halton"]), help="Sequence of positions, of models that start anywhere.")
@click.option("--steps", type=click.IntRange(min=1), help="Decoding steps, where the order leaves them open [default: the run's].")
@click.option(
    "--head",
    metavar="SETTINGS",
    help="Settings of the head's own sampler, as in a run file: '{diffusion: {steps: 50, temperature: 0.95}}' [default: the run's].",
)
@click.option(
    "--decode",
    "--decoder",
    "decoder",
    metavar="NAME",
    help="Way of decoding, a name of `tokenloom decoders`, or as in a run file: '{draft_model: {model: RUN}}' [default: the run's].",
)
@click.option(
    "--set", "fields", multiple=True, metavar="FIELD=VALUE", help="A field of the way of decoding, e.g. window=8; may be given again."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Of images FILE.png: a grid, or FILE.npz: arrays images uint8 (N,H,W,C) and labels. Of series FILE.csv and FILE.png: both. "
    "With --prompts a FOLDER.",
)
@place_options
@cluster_options
@json_option
def sample(
    model: str,
    classes: str | None,
    texts: tuple[str, ...],
    columns: dict[str, list[Path]],
    total: int,
    seed: int,
    history: Path | None,
    horizon: int | None,
    inpaint: Path | None,
    mask: Path | None,
    prompts: Path | None,
    rewrites: Path | None,
    each: int | None,
    head: str | None,
    decoder: str | None,
    fields: tuple[str, ...],
    out: Path,
    root: str | None,
    store: str | None,
    cluster: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Draw samples from a model.

    MODEL is models:/NAME@ALIAS of the registry, an artifact (NAME, NAME-FINGERPRINT or a unique prefix), or a run that is
    still training.  A model that is conditioned on text draws captions of its training data, unless --text says which.
    Of a cluster file only its tracking_uri counts here: where the registry is.
    """
    if (inpaint is None) != (mask is None):
        raise click.UsageError("--inpaint IMAGE and --mask PNG go together")
    if prompts is None and (rewrites is not None or each is not None):
        raise click.UsageError(f"{'--rewrites' if rewrites is not None else '--each'} goes with --prompts")
    if prompts is None and (out.suffix not in (".png", ".npz", ".csv") or out.is_dir()):
        raise click.BadParameter(
            f"{str(out)!r}: write FILE.png (a grid or plot), FILE.npz (images) or FILE.csv (series)", param_hint="--out"
        )
    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"folder {str(out.absolute().parent)!r} does not exist", param_hint="--out")
    from tokenloom.configs.load import load_cluster, parse_yaml
    from tokenloom.flows.screen import screen
    from tokenloom.tasks.evaluation.sample import sample_model

    work = workspace("tokenloom", root, store, load_cluster(cluster))
    tracker = work.tracker if model.startswith("models:/") else None
    with screen() as shown:
        document = sample_model(
            model,
            work.store,
            tracker,
            classes=classes,
            texts=texts or None,
            total=total,
            seed=seed,
            history=history,
            horizon=horizon,
            columns=columns,
            prompts=prompts,
            rewrites=rewrites,
            each=each,
            inpaint=None if inpaint is None or mask is None else (inpaint, mask),
            head=None if head is None else parse_yaml(head, "--head"),
            decoder=decoder_of(decoder, fields),
            out=out,
            report=shown.report,
            **{name: value or None if name == "guidance_interval" else value for name, value in settings.items()},
        )
    if as_json:
        emit(document)
    else:
        files = document.get("out", str(out))
        drawn = document.get("samples", total)
        click.echo(f"{drawn} samples of {document.get('model', model)}: {files if isinstance(files, str) else ', '.join(files)}")


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

"""``sample``: what a model draws, and the values of its options as people write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, workspace


def decoder_of(text: str | None, fields: tuple[str, ...]) -> Any:
    """``--decode NAME`` and the ``--set FIELD=VALUE`` beside it, as a run file has them.

    Raises:
        UsageError: fields without a name, or a text that is no field and value.
    """
    from tokenloom.configs.load import parse_yaml

    value = None if text is None else parse_yaml(text, "--decode")
    if text is not None and value is None:
        raise click.UsageError(f"--decode {text!r}: write the NAME of a way of decoding, of `tokenloom decoders`")
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


def _numbers(text: str, example: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: write {example}") from error


def number_or_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> int | list[int] | None:
    """One number, or several."""
    if value is None:
        return None
    found = _numbers(value, "a number of steps, or the positions of each step, e.g. 1,3,12")
    if min(found) < 1:
        raise click.BadParameter(f"{value!r}: each must be at least 1")
    return found if len(found) > 1 else found[0]


def name_or_numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> str | list[int] | None:
    """A name, or numbers."""
    return value if value is None or value.isalpha() else _numbers(value, "a name, or positions from 0 on, e.g. 27,28,35,36")


def rows_and_columns(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``ROWSxCOLUMNS``, or one number for a square."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", value, re.ASCII)
    if found is None or min(sides := (int(found[1]), int(found[2] or found[1]))) < 1:
        raise click.BadParameter(f"{value!r}: write ROWSxCOLUMNS, e.g. 512x256, or one number for a square")
    return sides


@click.command(
    epilog=epilog(
        "tokenloom sample models:/digits-var@champion --n 100 --out samples.png",
        "tokenloom sample digits-var --classes 3,7 --n 20 --seed 5 --out threes_and_sevens.npz",
        "tokenloom sample pets --classes cat,dog --out pets.png",
        'tokenloom sample digits-text --text "a handwritten seven" --text "a handwritten two" --n 20 --out named.png',
        "tokenloom sample digits-text --prompts geneval.jsonl --guidance 3 --out geneval",
        "tokenloom sample pets-control --column control=edges.png --n 4 --out pets.png",
        "tokenloom sample flexvar-d24 --size 512x256 --classes 980 --out tall_volcanoes.png",
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
@click.option(
    "--order",
    metavar="NAME|LIST",
    callback=name_or_numbers,
    help="Of models that start anywhere: raster, random, halton, outward, or the first positions, e.g. 27,28,35,36.",
)
@click.option(
    "--steps",
    metavar="NUMBER|LIST",
    callback=number_or_numbers,
    help="Decoding steps, where the order leaves them open, or the positions of each step, e.g. 1,3,12 [default: the run's].",
)
@click.option("--steps-along", type=click.Choice(["cosine", "linear", "arccos"]), help="Curve of what is open over the steps.")
@click.option(
    "--size", metavar="ROWSxCOLUMNS", callback=rows_and_columns, help="Of images: another size than that of training, e.g. 512x256."
)
@click.option("--prefix", type=click.IntRange(min=1), help="Of 1-D tokens: draw this many and decode them alone, a preview.")
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
    size: tuple[int, int] | None,
    prefix: int | None,
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
            size=size,
            prefix=prefix,
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

"""``import``, ``export`` and ``gc``."""

from __future__ import annotations

from pathlib import Path

import click

from tokenloom.flows.cli.options import emit, epilog, json_option, place_options, workspace
from tokenloom.tasks.store.lineage import collect


@click.command(
    "import",
    epilog=epilog(
        "tokenloom import var-vqvae --weights vae_ch160v4096z32.pth",
        "tokenloom import var-d16 --weights var_d16.pth",
        "tokenloom import rar-b --weights hf:yucornetto/RAR",
        "tokenloom import var my_var.pth --settings my_var.json --tokenizer var-vqvae --name my-var",
    ),
)
@click.argument("what", metavar="NAME")
@click.argument("file", required=False, metavar="[WEIGHTS]")
@click.option("--weights", metavar="FILE", help="The checkpoint file, or hf:OWNER/NAME[/FILE][@REVISION] on the Hugging Face hub.")
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='JSON of the official constructor\'s settings, {"config": {…}}; a published checkpoint needs none.',
)
@click.option("--tokenizer", help="Artifact of the tokenizer that a generator belongs to [default: the published one].")
@click.option("--encoder", help="Of a model of texts: hub name or folder of its text encoder [default: the published one].")
@click.option("--name", help="Name of the artifact [default: NAME].")
@place_options
@json_option
def import_(
    what: str,
    file: str | None,
    weights: str | None,
    settings: Path | None,
    tokenizer: str | None,
    encoder: str | None,
    name: str | None,
    root: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """An official checkpoint becomes an artifact: a tokenizer for `tokenizer: {use: NAME}`, or a generator to sample.

    NAME is a published checkpoint (var-d16, llamagen-b-256, rar-b, …), which brings its settings and its paper's sampler, or a family of
    tokenloom.models.pretrained with --settings; or inception, the network of FID. WEIGHTS is .safetensors, or .pth read with weights_only
    (no pickled classes). Of the hub only what is in this machine's cache is taken, unless HF_HUB_OFFLINE=0 is set.
    """
    from tokenloom.tasks import modalities
    from tokenloom.tasks.store.hub import weights_file
    from tokenloom.tasks.store.official import PRESETS, import_checkpoint

    work = workspace("tokenloom", root, store)
    given = weights or file
    if given is None or (weights and file):
        at = f"; its authors keep it at hf:{PRESETS[what].hub}" if what in PRESETS and PRESETS[what].hub.count("/") == 1 else ""
        raise click.UsageError(f"name the checkpoint file once: tokenloom import NAME --weights FILE{at}")
    source = weights_file(given, PRESETS[what].file if what in PRESETS else "", "--weights" if weights else "WEIGHTS")
    outcome = modalities.import_network(what, source, work.store) or import_checkpoint(
        what, source, settings, name or what.replace("_", "-"), work.store, tokenizer, encoder
    )
    made = outcome.artifact
    if as_json:
        emit({"status": outcome.status, "artifact": f"{made.kind}/{made.id}", "uri": made.uri, "metrics": outcome.metrics})
    else:
        click.echo(f"{made.kind}/{made.id} ({outcome.status}) at {made.uri}")


@click.command(epilog=epilog("tokenloom export digits-var exported/", "tokenloom export tokenizer/digits-var-1a2b3c4d5e6f exported/"))
@click.argument("reference", metavar="ARTIFACT")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@place_options
@json_option
def export(reference: str, folder: Path, root: str | None, store: str | None, as_json: bool) -> None:
    """A tokenizer or generator becomes a folder: weights.safetensors, model.json and a model card README.md.

    ARTIFACT is NAME (its generator), NAME-FINGERPRINT, KIND/NAME-FINGERPRINT or a unique prefix.
    """
    from tokenloom.flows.cli.look import run_name
    from tokenloom.tasks.store.official import export_model

    work = workspace("tokenloom", root, store)
    files = export_model(run_name(reference), folder, work.store)
    if as_json:
        emit({"folder": str(folder), "files": [str(path) for path in files]})
    else:
        for path in files:
            click.echo(str(path))


@click.command(epilog=epilog("tokenloom gc", "tokenloom gc --delete"))
@click.option("--delete", is_flag=True, help="Remove them; without it they are only listed.")
@place_options
@json_option
def gc(delete: bool, root: str | None, store: str | None, as_json: bool) -> None:
    """Remove what no record refers to: half-written folders that nobody works on, loose shards, old checkpoints.

    A half-written folder is what a killed run goes on from: with --delete that run starts its step again.
    """
    work = workspace("tokenloom", root, store)
    paths = collect(work.store, dry_run=not delete)
    if as_json:
        emit({"deleted": delete, "paths": paths})
        return
    for path in paths:
        click.echo(path)
    what = "removed" if delete else "to remove; run again with --delete" if paths else "nothing to remove"
    click.echo(f"{len(paths)} paths {what}" if paths else what, err=True)

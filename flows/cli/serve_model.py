"""``serve-model``: one model over HTTP, for many at once."""

from __future__ import annotations

import contextlib
import sys

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, workspace


@click.command(
    name="serve-model",
    epilog=epilog(
        "tokenloom serve-model models:/digits-var@champion",
        "tokenloom serve-model digits-raster --port 9000 --rows 64 --queue 256",
        """curl -s 127.0.0.1:8100/v1/images/generations -d '{"prompt": "7", "n": 4, "seed": 1}'""",
        "curl -s 127.0.0.1:8100/health",
    ),
)
@click.argument("model")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. There is no login.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8100, show_default=True, help="0: a free one.")
@click.option(
    "--rows", type=click.IntRange(min=2), default=32, show_default=True, help="Of the net in one pass; a sample under guidance takes two."
)
@click.option("--queue", "waiting", type=click.IntRange(min=1), default=64, show_default=True, help="Requests that may wait.")
@click.option("--grace", type=click.IntRange(min=0), default=60, show_default=True, help="Seconds for what was taken, at the end.")
@click.option("--device", default="cpu", show_default=True, help="Where the model is, e.g. cuda.")
@place_options
@cluster_options
@json_option
def serve_model(
    model: str,
    host: str,
    port: int,
    rows: int,
    waiting: int,
    grace: int,
    device: str,
    root: str | None,
    store: str | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Answer requests for samples of MODEL over HTTP, until Ctrl-C or SIGTERM; what was taken by then is still answered.

    Requests share passes of the net, each at its own step, where the generator's parts allow it; /health says whether.  An image is a
    function of its request and seed alone, whoever else asks.  POST /v1/images/generations takes OpenAI's form (prompt: a class or a
    text), POST /invocations MLflow's; /health and /metrics (Prometheus) tell how it is.
    """
    import socket

    from tokenloom.configs.load import load_cluster
    from tokenloom.models.core.config import ConfigError
    from tokenloom.tasks import modalities
    from tokenloom.tasks.evaluation.sample import open_model
    from tokenloom.tasks.runtime.errors import Preempted

    work = workspace("tokenloom", root, store, load_cluster(cluster))
    pair, title = open_model(model, work.store, work.tracker if model.startswith("models:/") else None, device)
    app = modalities.kind(pair.kind).web(pair, title, rows, waiting)

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)  # who comes from now on waits
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from error
    address = f"http://{f'[{host}]' if family == socket.AF_INET6 else host}:{listening.getsockname()[1]}"
    if as_json:
        emit({"model": title, "address": address, "passes_shared": app.state.desk.apart is None})
    else:
        click.echo(f"{title}: {address}")
        if app.state.desk.apart is not None:
            click.echo(f"One request after another: {app.state.desk.apart}.")
    sys.stdout.flush()
    click.echo("Ctrl-C ends it; what was taken by then is answered.", err=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=grace, lifespan="on"))
    with contextlib.suppress(KeyboardInterrupt, Preempted):  # raised again once all is answered: the ways in which this command ends
        server.run(sockets=[listening])

"""``ui``: the MLflow and Prefect pages, on loopback."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, workspace


@click.command(epilog=epilog("tokenloom ui", "tokenloom ui --mlflow-port 5001 --prefect-port 4201"))
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help="[default: 5000, or a free one]")
@click.option("--prefect-port", type=click.IntRange(1, 65535), help="[default: 4200, or a free one]")
@place_options
@cluster_options
@json_option
def ui(mlflow_port: int | None, prefect_port: int | None, root: str | None, store: str | None, cluster: str | None, as_json: bool) -> None:
    """Open the MLflow and Prefect pages of a root folder on 127.0.0.1, until Ctrl-C.

    Where runs are tracked by a server (`tracking_uri` of the cluster file, else MLFLOW_TRACKING_URI), its address is shown.
    """
    from tokenloom.configs.load import load_cluster
    from tokenloom.flows import prefect_api as servers

    work = workspace("tokenloom", root, store, load_cluster(cluster))
    work.check()
    prefect = servers.port("--prefect-port", prefect_port, 4200)
    mlflow = servers.port("--mlflow-port", mlflow_port, 5000)
    logs = work.root / "logs"
    commands = {"Prefect": (servers.server_command(prefect), f"http://127.0.0.1:{prefect}", "/api/health")}
    tracking = work.tracker.uri
    if not tracking.startswith("http"):  # a database: its page is shown here; `ps` would show a password on the command line
        command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"]
        commands["MLflow"] = (command, f"http://127.0.0.1:{mlflow}", "/health")
    with contextlib.ExitStack() as held:
        started = {}
        for what, (command, address, health) in commands.items():
            log_file = str(logs / f"{what.lower()}-ui.log")
            process = servers.process(command, log_file, {"MLFLOW_BACKEND_STORE_URI": tracking} if what == "MLflow" else None)
            started[what] = (held.enter_context(process), address + health, log_file)
        for what, (each, url, log_file) in started.items():
            servers.wait_for(url, each, what, log_file)
        addresses = {what.lower(): address for what, (_, address, _) in commands.items()}
        addresses.setdefault("mlflow", work.tracker.shown)
        if as_json:
            emit(addresses)
            sys.stdout.flush()
        else:
            for what, address in addresses.items():
                click.echo(f"{what}: {address}")
        click.echo("Ctrl-C stops both.", err=True)
        with contextlib.suppress(KeyboardInterrupt):  # the way in which this command ends
            _watch(started)


def _watch(started: dict[str, tuple[subprocess.Popen[bytes], str, str]]) -> None:
    """Wait for ever, or until a server ends by itself."""
    from tokenloom.tasks.runtime.errors import StepError

    while True:
        time.sleep(0.5)
        for what, (process, _, log_file) in started.items():
            if process.poll() is not None:
                raise StepError(f"{what} ended with code {process.returncode}; see {log_file}")

"""``submit``: a run as a job of AWS Batch; ``node``: what each machine of such a job carries out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenloom.flows.cli.options import cluster_options, emit, epilog, json_option, place_options, run_options, workspace

if TYPE_CHECKING:
    from tokenloom.configs.schema import RunConfig


@click.command(
    epilog=epilog(
        "tokenloom submit digits_var --queue tokenloom --job-definition tokenloom --store s3://bucket/store",
        "tokenloom submit my_run.yaml --queue gpu --job-definition tokenloom-nodes --store s3://bucket/store --nodes 4 \\",
        "    --cluster ray_cluster --set cluster.execution.workers=4 --set cluster.extract_actors=4",
        "tokenloom submit digits_var --queue q --job-definition d --store s3://bucket/store --dry-run",
    )
)
@run_options
@place_options
@cluster_options
@click.option("--queue", required=True, help="Job queue.")
@click.option("--job-definition", "definition", required=True, help="Job definition: NAME, NAME:REVISION or ARN (see infra/terraform).")
@click.option("--nodes", default=1, show_default=True, help="Machines; several form a Ray cluster, in a multi-node parallel job.")
@click.option("--region", envvar="AWS_REGION", help="AWS region.")
@click.option("--dry-run", is_flag=True, help="Print the request as JSON; nothing is written or sent.")
@json_option
def submit(
    run: str,
    sets: tuple[str, ...],
    root: str | None,
    store: str | None,
    cluster: str | None,
    queue: str,
    definition: str,
    nodes: int,
    region: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Carry out a run as a job of AWS Batch.

    The job's name is the run's name and fingerprint: while one of that name is queued or running, it is shown and no second
    one is made. A job that was preempted (exit code 75) or lost its machine comes back and goes on from its last checkpoint.
    """
    from tokenloom.configs.load import load_cluster, load_run
    from tokenloom.flows import planning
    from tokenloom.tasks.runtime import batch

    config, where = load_run(run, sets), load_cluster(cluster, sets)
    place = workspace(config.name, root, store, where).store_uri
    _check_reachable(place, where, nodes)
    _check_recipe(config)  # nothing is sent that would fail there as it would here
    # The machines form the cluster themselves, and their image carries the code.
    plain = where.model_dump(mode="json") | {"address": "local", "ship_code": False}
    submission = batch.Submission(config.model_dump(mode="json", by_alias=True), plain, place.rstrip("/"))
    name = batch.job_name(config.name, planning.fingerprint(config))
    job = batch.Job(name, queue, definition, ("tokenloom", "node", submission.uri), nodes, _environment())
    if dry_run:
        emit({"request": job.request(), "submission": {"uri": submission.uri, "run": submission.run, "cluster": submission.cluster}})
        return
    found = batch.submit(job, submission, region)
    if as_json:
        emit({"job": found.id, "name": found.name, "status": found.status, "submitted": found.submitted})
    else:
        click.echo(f"{'submitted' if found.submitted else f'there already ({found.status})'}: {found.name}  job {found.id}  queue {queue}")


def _check_reachable(store: str, cluster: Any, nodes: int) -> None:
    from tokenloom.models.core.config import ConfigError

    if not store.startswith("s3://"):
        raise ConfigError(f"--store {store!r}: a job's machine is not this one; give s3://bucket/prefix")
    if cluster.address not in ("local", "auto"):
        raise ConfigError(f"cluster.address={cluster.address!r}: the job makes its own Ray cluster; leave address at local or auto")
    if "@" in (cluster.tracking_uri or ""):
        raise ConfigError("cluster.tracking_uri: holds a password, and submissions are kept; give it to the job definition as a secret")
    if nodes > cluster.execution.workers:
        raise ConfigError(f"--nodes {nodes}: cluster.execution.workers={cluster.execution.workers} leave some of them idle")


def _check_recipe(config: RunConfig) -> None:
    """As much of ``planning.check`` as needs neither the store nor the data, which are not here.

    Models that depend on artifacts of the store are looked at no further than their settings.
    """
    from tokenloom.models.core.build import ModelSpec
    from tokenloom.models.core.config import ConfigError
    from tokenloom.tasks.evaluation.gate import check_names
    from tokenloom.tasks.modalities.image.sources import opener
    from tokenloom.tasks.runtime.checks import check_models, depends_on

    opener(config.data)
    section, method = config.tokenizer, config.generator
    if method is not None and method.use is not None:
        pass  # both models are in the store
    elif section is None or (section.use is None and (section.base is None or section.base.use is None)):
        check_models(config, classes=10)  # any number: the data's is not known
    else:
        depends_on(section)
        if method is not None:
            try:
                ModelSpec("generator", method.recipe or "", dict(method.args), dict(method.set)).config()
            except ConfigError as error:
                raise ConfigError(f"generator: {error}") from error
    if method is not None or config.density is not None:
        check_names(config.register_.floor, config.register_.gate, config.evaluate.metrics)


def _environment() -> dict[str, str]:
    """Addresses that a job needs and that are no secrets; credentials come from the job's role."""
    names = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")
    return {name: value for name in names if (value := os.environ.get(name)) and "@" not in value}


@click.command(epilog=epilog("tokenloom node s3://bucket/store/submissions/digits-var-0123456789ab.json"))
@click.argument("uri")
@click.option("--root", envvar="TOKENLOOM_ROOT", default=".tokenloom", metavar="FOLDER", help="Caches, logs and scratch files.")
@json_option
def node(uri: str, root: str, as_json: bool) -> int:
    """Carry out this machine's part of a submission (the job definitions of `submit` call it)."""
    from tokenloom.flows import batch_node, environment

    there = Path(root).expanduser().absolute()
    there.mkdir(parents=True, exist_ok=True)
    environment.prepare(there)
    environment.log_to(there)
    return batch_node.work(uri, there, ("--json",) if as_json else ())

"""Read this first: raw images in, an evaluated, registered, servable model out.

One direction.  Each step takes artifact references and returns one; each looks first whether what it would make is in the
store already, complete and verified, and then does nothing (``tasks/store/artifacts.py``).

    raw images -> dataset -> tokenizer -> tokens -> generator (-> stages) -> evaluation -> registration
                     `-> features (the network that judges the samples) --^

A tokenizer that depends on another one (its base) or on the features has them made before it.  A run without a generator ends
with the evaluation of its tokenizer.  Which steps there are, and what each of them needs, is one table: ``tasks/steps/table.py``.
"""

# No ``from __future__ import annotations`` here: a served flow travels to its process by value, and only real
# annotations travel with it.
import logging
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tokenloom.configs.load import load_cluster, load_run
from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.flows import pages, planning, results, screen, steps
from tokenloom.flows.workspace import Workspace
from tokenloom.tasks.store.artifacts import Artifact

log = logging.getLogger(__name__)


def carry_out(config: RunConfig, work: Workspace, until: str | None = None) -> None:
    """Every step of the run in order (up to the one named ``until``), e.g. extract: ``tokens`` from ``dataset`` and ``tokenizer``."""
    made: dict[str, Artifact] = {}
    for link in planning.chain(config, work.store):
        inputs = {name: made[role] for name, role in link.needs.items()}
        made[link.step.makes] = steps.carry_out(link.step, config, work, inputs)
        if link.step.name == until:
            break


def run_name() -> str:
    """Name of a flow run: the run's name and the fingerprint of its recipe."""
    config = RunConfig.model_validate(runtime.flow_run.parameters["config"])
    return f"{config.name}-{planning.fingerprint(config)}"


@flow(name="tokenloom", flow_run_name=run_name, persist_result=False, validate_parameters=True)
def pipeline(
    config: RunConfig, cluster: ClusterConfig | None = None, root: str | None = None, store: str | None = None
) -> "State[list[dict[str, Any]]]":
    """The whole pipeline as a Prefect flow: deploy it, schedule it, or call it.

    A scheduled run looks for new data, tokenizes that alone, trains on all of it and registers what comes out, as far as there
    is something new; the message of its final state says which of these it was.

    Args:
        config: what to make (a run file).
        cluster: where; this machine if not given.
        root: local folder of databases, logs and caches.
        store: folder or ``s3://bucket/prefix`` of the artifacts; inside ``root`` if not given.

    Returns:
        One row a step: name, status (cached or ran), fingerprint, seconds, uri. (Prefect hands them out of the state.)
    """
    return _carry_out(config, cluster, root, store)


@flow(name="tokenloom-retrain", flow_run_name="{run}", persist_result=False, validate_parameters=True)
def retrain(
    run: str, sets: list[str] | None = None, cluster: str | None = None, root: str | None = None, store: str | None = None
) -> "State[list[dict[str, Any]]]":
    """The same as a deployment that says by name what to make and where (``infra/prefect.yaml``): the files ship with the code.

    Args:
        run: a name in ``configs/runs`` or a path to YAML, where the flow runs.
        sets: edits of it, ``path=value``; ``cluster.path=value`` edits the cluster file.
        cluster: a name in ``configs/clusters`` or a path; this machine if not given.
        root: local folder of databases, logs and caches.
        store: folder or ``s3://bucket/prefix`` of the artifacts.
    """
    edits = sets or []
    return _carry_out(load_run(run, edits), load_cluster(cluster, edits), root, store)


def _carry_out(config: RunConfig, cluster: ClusterConfig | None, root: str | None, store: str | None) -> "State[list[dict[str, Any]]]":
    work = Workspace.open(config.name, root, store, cluster)
    planned = planning.plan(config, work.store, work.tracker.uri)
    work.check()
    planning.check(config, work.store, planned)  # a deployment has no command line that would have refused it
    pages.plan(config, planned)
    with work:
        try:
            carry_out(config, work)
        finally:
            pages.results(config, work)
    summary = results.summary(work)
    log.info("%s: %s", config.name, summary)
    screen.current().say(summary)
    return Completed(message=summary, data=[done.row() for done in work.done])


def run(config: RunConfig, work: Workspace, until: str | None = None) -> None:
    """The same chain without Prefect."""
    with work:
        carry_out(config, work, until)

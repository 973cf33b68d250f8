"""Read this first: raw images in, an evaluated, registered, servable model out.

Seven steps, one direction.  Each takes artifact references and returns one; each looks first whether what it would make
is in the store already, complete and verified, and then does nothing (``tasks/artifacts.py``).

    raw images -> dataset -> tokenizer -> tokens -> generator -> evaluation -> registration
                     `-> features (the network that judges the samples) --^
"""

# No ``from __future__ import annotations`` here: a served flow travels to its process by value, and only real
# annotations travel with it.
from typing import Any

from prefect import flow, runtime

from configs.schema import ClusterConfig, RunConfig
from flows import pages, planning, steps
from flows.workspace import Workspace


def chain(config: RunConfig, work: Workspace) -> None:
    """The way of one image."""
    dataset = steps.ingest(config, work)
    tokenizer = steps.train_tokenizer(config, work, dataset=dataset)
    tokens = steps.extract(config, work, dataset=dataset, tokenizer=tokenizer)
    features = steps.features(config, work, dataset=dataset)
    generator = steps.train_generator(config, work, tokens=tokens, tokenizer=tokenizer)
    evaluation = steps.evaluate(config, work, generator=generator, tokenizer=tokenizer, dataset=dataset, features=features)
    steps.register(config, work, evaluation=evaluation, generator=generator, tokenizer=tokenizer)


def run_name() -> str:
    """Name of a flow run: the run's name and the fingerprint of its recipe."""
    config = RunConfig.model_validate(runtime.flow_run.parameters["config"])
    return f"{config.name}-{planning.fingerprint(config)}"


@flow(name="tokenloom", flow_run_name=run_name, persist_result=False, validate_parameters=True)
def pipeline(
    config: RunConfig, cluster: ClusterConfig | None = None, root: str | None = None, store: str | None = None
) -> list[dict[str, Any]]:
    """The whole pipeline as a Prefect flow: deploy it, schedule it, or call it.

    Args:
        config: what to make (a run file).
        cluster: where; this machine if not given.
        root: local folder of databases, logs and caches.
        store: folder or ``s3://bucket/prefix`` of the artifacts; inside ``root`` if not given.

    Returns:
        One row a step: name, status (cached or ran), fingerprint, seconds, uri.
    """
    work = Workspace.open(config.name, root, store, cluster)
    pages.plan(config, planning.plan(config, work.store, work.tracker.uri))
    with work:
        try:
            chain(config, work)
        finally:
            pages.results(config, work)
    return [done.row() for done in work.done]


def run(config: RunConfig, work: Workspace) -> None:
    """The same chain without Prefect."""
    with work:
        chain(config, work)

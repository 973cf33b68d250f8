"""The steps as Prefect runs them: each step of the table is a task inside of a flow run, and a flow of its own.

Inside a flow run a call is a Prefect task run; elsewhere (``--no-prefect``, a notebook) it is the plain function.
Tasks are called, never submitted: they use Ray and signals, and both belong to the main thread.  Whether a step has to
work is decided by its artifact in the store, never by Prefect's cache.

The flow of a step, e.g. ``tokenloom.flows.steps.train_tokenizer_flow``, needs the artifacts of the steps before it in the store.
"""

# No ``from __future__ import annotations`` here: a served flow travels to its process by value, and only real
# annotations travel with it.
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.flows import planning
from tokenloom.flows.screen import Done
from tokenloom.flows.workspace import Workspace
from tokenloom.tasks.steps.base import Context, Step
from tokenloom.tasks.steps.table import TABLE
from tokenloom.tasks.store.artifacts import Artifact

if TYPE_CHECKING:
    from prefect.flows import Flow


def transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: the network or a remote service, never a wrong value or a failed step."""
    try:
        state.result()
    except (ConnectionError, TimeoutError):
        return True
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__}
        return bool(names & {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"})
    return False


def carry_out(step: Step, config: RunConfig, work: Workspace, inputs: Mapping[str, Artifact]) -> Artifact:
    """Run one step on its inputs, as a Prefect task where a flow runs; its outcome is noted in ``work``."""

    def noted(config: RunConfig, work: Workspace, **inputs: Artifact) -> Artifact:
        return _noted(step, config, work, inputs)

    noted.__name__ = noted.__qualname__ = step.name
    if not FlowRunContext.get():
        return noted(config, work, **inputs)
    as_task = task(
        name=step.name.replace("_", "-"),
        description=step.summary,
        task_run_name=f"{step.name}-{{config.name}}",
        retries=2,
        retry_delay_seconds=[10, 60],
        retry_condition_fn=transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(noted)
    return as_task(config, work, **inputs)


def _noted(step: Step, config: RunConfig, work: Workspace, inputs: Mapping[str, Artifact]) -> Artifact:
    started = time.monotonic()
    work.begin(step.name)
    try:
        context = Context(config, work.store, work.tracker.uri, work.cluster, work.tracker, work.report)
        made = step.run(context, inputs)
    except BaseException as error:
        work.end(Done(step.name, "failed", seconds=time.monotonic() - started, error=_reason(error)))
        raise
    work.end(Done(step.name, made.status, made.artifact, made.seconds, dict(made.metrics)))
    if made.told:
        work.say(made.told)
    return made.artifact


def _reason(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


def run_alone(name: str, config: RunConfig, work: Workspace) -> list[dict[str, Any]]:
    """Run the step of this name with what the store holds; the rows of the result table.

    Raises:
        ConfigError: an earlier step has to run first, or the run has no such step.
    """
    work.check()
    with work:
        inputs = planning.inputs(name, config, work.store)
        step = next(link.step for link in planning.chain(config, work.store) if link.step.name == name)
        carry_out(step, config, work, inputs)
    return [done.row() for done in work.done]


def flow_of(name: str, summary: str = "") -> "Flow[Any, Any]":
    """A flow that runs the step of this name alone."""

    def alone(
        config: RunConfig, cluster: ClusterConfig | None = None, root: str | None = None, store: str | None = None
    ) -> list[dict[str, Any]]:
        return run_alone(name, config, Workspace.open(config.name, root, store, cluster))

    alone.__name__ = f"{name}_flow"
    alone.__qualname__ = alone.__name__
    alone.__doc__ = summary
    return flow(name=name.replace("_", "-"), flow_run_name=f"{name}-{{config.name}}", persist_result=False)(alone)


# One flow for each step, found by its module and name: ``tokenloom.flows.steps.ingest_flow`` and so on.
globals().update({f"{step.name}_flow": flow_of(step.name, step.summary) for step in TABLE})

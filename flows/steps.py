"""The steps: thin Prefect tasks around plain functions, artifact references in and one reference out.

Inside a flow run a call is a Prefect task run; elsewhere (``--no-prefect``, a notebook) it is the plain function.
Tasks are called, never submitted: they use Ray and signals, and both belong to the main thread.  Whether a step has to
work is decided by its artifact in the store, never by Prefect's cache.

Each step is also a flow of its own, e.g. ``tokenloom.flows.steps.train_tokenizer_flow``; it needs the artifacts of the steps
before it in the store.
"""

# No ``from __future__ import annotations`` here: a served flow travels to its process by value, and only real
# annotations travel with it.
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.flows import planning
from tokenloom.flows.screen import Done
from tokenloom.flows.workspace import Workspace
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec

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


def step(function: Callable[..., Outcome]) -> Callable[..., Artifact]:
    """Make a function ``(config, work, **artifacts) -> Outcome`` a step: a Prefect task where a flow runs, noted in ``work``."""

    @functools.wraps(function)
    def noted(config: RunConfig, work: Workspace, **artifacts: Artifact) -> Artifact:
        started, name = time.monotonic(), function.__name__
        work.begin(name)
        try:
            made = function(config, work, **artifacts)
        except BaseException as error:
            work.end(Done(name, "failed", seconds=time.monotonic() - started, error=_reason(error)))
            raise
        work.end(Done(name, made.status, made.artifact, made.seconds, dict(made.metrics)))
        return made.artifact

    as_task = task(
        name=function.__name__.replace("_", "-"),
        task_run_name=f"{function.__name__}-{{config.name}}",
        retries=2,
        retry_delay_seconds=[10, 60],
        retry_condition_fn=transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(noted)

    @functools.wraps(function)
    def call(config: RunConfig, work: Workspace, **artifacts: Artifact) -> Artifact:
        return (as_task if FlowRunContext.get() else noted)(config, work, **artifacts)

    return call


def _reason(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__


@step
def ingest(config: RunConfig, work: Workspace) -> Outcome:
    """Raw images to dataset shards; only new files are read."""
    from tokenloom.tasks.ingest import ingest

    return ingest(config.name, config.data, work.store, work.report)


@step
def train_base(config: RunConfig, work: Workspace, dataset: Artifact) -> Outcome:
    """Train the tokenizer that the run's tokenizer stands on, or take the one that it uses."""
    return _tokenizer(planning.base_step(config, work.store, dataset), work, "train_base")


@step
def train_tokenizer(
    config: RunConfig, work: Workspace, dataset: Artifact, base: Artifact | None = None, features: Artifact | None = None
) -> Outcome:
    """Train the tokenizer, or take the one that the run uses."""
    return _tokenizer(planning.tokenizer_step(config, work.store, dataset, base, features), work, "train_tokenizer")


def _tokenizer(made: StepSpec | Artifact, work: Workspace, name: str) -> Outcome:
    from tokenloom.tasks.distributed import train_model

    if isinstance(made, Artifact):
        return Outcome(made, "cached", 0.0, work.store.record(made).metrics)
    # A base is a tokenizer like any other; only the screen tells it apart.
    return train_model(made, work.store, work.cluster, work.tracker, lambda _, *rest: work.report(name, *rest))


@step
def extract(config: RunConfig, work: Workspace, dataset: Artifact, tokenizer: Artifact) -> Outcome:
    """Every image as tokens, shard by shard."""
    from tokenloom.tasks.extract import extract

    return extract(planning.extract_step(config, work.store, dataset, tokenizer), work.store, work.cluster, work.report)


@step
def features(config: RunConfig, work: Workspace, dataset: Artifact) -> Outcome:
    """The network that judges samples: one for a dataset, whatever the method."""
    from tokenloom.tasks.features import features

    return features(planning.features_step(config, work.store, dataset), work.store, work.report)


@step
def train_generator(config: RunConfig, work: Workspace, tokens: Artifact, tokenizer: Artifact) -> Outcome:
    """Train the generator on the tokens."""
    from tokenloom.tasks.distributed import train_model

    made = planning.generator_step(config, work.store, tokens, tokenizer, work.tracker.uri)
    return train_model(made, work.store, work.cluster, work.tracker, work.report)


@step
def evaluate(
    config: RunConfig, work: Workspace, tokenizer: Artifact, dataset: Artifact, features: Artifact, generator: Artifact | None = None
) -> Outcome:
    """Sample, measure and draw under the run's protocol."""
    from tokenloom.tasks.evaluate import evaluate

    made = planning.evaluate_step(config, work.store, tokenizer, dataset, features, generator)
    return evaluate(made, work.store, work.cluster, work.tracker, work.report)


@step
def register(config: RunConfig, work: Workspace, evaluation: Artifact, generator: Artifact, tokenizer: Artifact) -> Outcome:
    """Put the model into the registry; it becomes champion if the gate holds."""
    from tokenloom.tasks.register import register

    return register(planning.register_step(config, work.store, evaluation, generator, tokenizer), work.store, work.tracker, work.report)


def run_alone(call: Callable[..., Artifact], config: RunConfig, work: Workspace) -> list[dict[str, Any]]:
    """Run one step with what the store holds; the rows of the result table.

    Raises:
        ConfigError: an earlier step has to run first.
    """
    with work:
        call(config, work, **planning.inputs(call.__name__, config, work.store))
    return [done.row() for done in work.done]


def _flow(call: Callable[..., Artifact]) -> "Flow[Any, Any]":
    def alone(
        config: RunConfig, cluster: ClusterConfig | None = None, root: str | None = None, store: str | None = None
    ) -> list[dict[str, Any]]:
        return run_alone(call, config, Workspace.open(config.name, root, store, cluster))

    alone.__name__ = f"{call.__name__}_flow"
    alone.__qualname__ = alone.__name__
    alone.__doc__ = call.__doc__
    return flow(name=call.__name__.replace("_", "-"), flow_run_name=f"{call.__name__}-{{config.name}}", persist_result=False)(alone)


ingest_flow = _flow(ingest)
train_base_flow = _flow(train_base)
train_tokenizer_flow = _flow(train_tokenizer)
extract_flow = _flow(extract)
features_flow = _flow(features)
train_generator_flow = _flow(train_generator)
evaluate_flow = _flow(evaluate)
register_flow = _flow(register)

#: StepSpec name to the step, in order.
STEPS: dict[str, Callable[..., Artifact]] = {
    call.__name__: call for call in (ingest, train_base, train_tokenizer, extract, features, train_generator, evaluate, register)
}

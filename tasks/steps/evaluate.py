"""Step ``evaluate``: samples, numbers and pictures under the run's protocol."""

from __future__ import annotations

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks import evaluate as evaluating
from tokenloom.tasks.steps import train_stage
from tokenloom.tasks.steps.base import Context, Inputs, Step, roles
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store


def needs(config: RunConfig, _store: Store) -> dict[str, str]:
    """The models of the run, the data and the network that judges; without a generator the tokenizer alone is judged."""
    models = {} if config.generator is None else {"generator": train_stage.last(config)}
    return {**models, **roles("tokenizer", "dataset", "features")}


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """The judgement of what the run has trained."""
    config = context.config
    models, data = (inputs.get("generator"), inputs["tokenizer"]), (inputs["dataset"], inputs["features"])
    return evaluating.plan_evaluate(config.name, *models, *data, config.sample, config.evaluate, context.store)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Sample, measure and draw, or find it done."""
    return evaluating.evaluate(plan(context, inputs), context.store, context.cluster, context.tracker, context.report)


EVALUATE = Step("evaluate", "evaluation", "Sample, measure and draw under the run's protocol.", needs, plan, run)

"""Step ``evaluate``: samples, numbers and pictures under the run's protocol."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation import evaluate as evaluating
from tokenloom.tasks.runtime.checks import check_augmentation
from tokenloom.tasks.steps import train_stage
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store


def needs(config: RunConfig, _store: Store) -> dict[str, str]:
    """The models of the run, the data and the network that judges; without a generator the tokenizer alone is judged."""
    if config.density is not None:
        return roles("density", "dataset", "features")
    models = {} if config.generator is None else {"generator": train_stage.last(config)}
    judges = ("features",) if modalities.kind(config.data.kind).needs_features else ()
    return {**models, **roles("tokenizer", "dataset", *judges)}


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """The judgement of what the run has trained."""
    config = context.config
    if config.density is not None:
        given = inputs["density"], inputs["dataset"], inputs.get("features")
        return evaluating.plan_density_evaluation(config.name, *given, config.evaluate)
    models, data = (inputs.get("generator"), inputs["tokenizer"]), (inputs["dataset"], inputs.get("features"))
    return evaluating.plan_evaluate(config.name, *models, *data, config.sample, config.evaluate, context.store)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Sample, measure and draw, or find it done."""
    return evaluating.evaluate(plan(context, inputs), context.store, context.cluster, context.tracker, context.report)


def check(context: Context, _planned: Mapping[str, Planned]) -> None:
    """Refuse a model that this kind of data has no judge for, and a protocol that cannot be kept."""
    config = context.config
    last = "density" if config.density is not None else "tokenizer" if config.generator is None else "generator"
    judges = modalities.kind(config.data.kind).judges
    if last not in judges:
        raise ConfigError(f"data.kind={config.data.kind}: a run that ends with a {last} cannot be judged; end it with: {', '.join(judges)}")
    modalities.kind(config.data.kind).check(config)
    check_augmentation(config)
    unknown = {role: Artifact(role, config.name, "0" * 12, "") for role in ("tokenizer", "dataset", "features")}
    models = {"density" if config.density is not None else "generator": Artifact("generator", config.name, "0" * 12, "")}
    plan(context, unknown | (models if config.density is not None or config.generator is not None else {}))


EVALUATE = Step("evaluate", "evaluation", "Sample, measure and draw under the run's protocol.", needs, plan, run, check)

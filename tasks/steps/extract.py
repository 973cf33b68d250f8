"""Step ``extract``: every item of the dataset as tokens, shard by shard."""

from __future__ import annotations

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks.data import extract as extracting
from tokenloom.tasks.steps.base import Context, Inputs, Step, roles
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """A dataset and what encodes it, where something is trained on the tokens, or nothing but a tokenizer is."""
    used = config.generator is not None and config.generator.use is not None and not config.stages
    return None if config.density is not None or used else roles("dataset", "tokenizer")


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """Every item of the dataset as tokens."""
    config = context.config
    views = tuple(config.extract.views)
    return extracting.plan_extract(config.name, inputs["dataset"], inputs["tokenizer"], context.store, views, config.data.kind)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Encode the shards that no artifact has."""
    return extracting.extract(plan(context, inputs), context.store, context.cluster, context.report)


EXTRACT = Step("extract", "tokens", "Every item as tokens, shard by shard.", needs, plan, run)

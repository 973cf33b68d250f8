"""Step ``train_generator``: a generator on the tokens of the dataset."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.tasks.data.conditions import check_captions, check_columns
from tokenloom.tasks.evaluation.evaluate import draft_model
from tokenloom.tasks.runtime.checks import check_generator
from tokenloom.tasks.steps import ingest, train_tokenizer
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store
from tokenloom.tasks.training.distributed import plan_generator, train_model
from tokenloom.tasks.training.warm_start import warm_start


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """Tokens, and the tokenizer that made them."""
    return None if config.generator is None else roles("tokens", "tokenizer")


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """The training of the generator, from fresh weights or a warm start.

    Raises:
        ConfigError: a warm start that is not in the store, or that knows the codes of another tokenizer.
    """
    config, store, wanted = context.config, context.store, context.config.generator
    assert wanted is not None, "a run without a generator has no such step"
    fresh = plan_generator(config.name, wanted, inputs["tokens"], inputs["tokenizer"], store, sample=config.sample)
    if wanted.warm_start is None:
        return fresh
    start = warm_start(wanted.warm_start, config.register_.name or config.name, fresh, store, context.registry)
    return plan_generator(config.name, wanted, inputs["tokens"], inputs["tokenizer"], store, start, config.sample)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the generator, or find it."""
    return train_model(plan(context, inputs), context.store, context.cluster, context.tracker, context.report)


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the generator without memory on what the tokenizer will give, and look at the captions and columns that it needs."""
    spec, layout = train_tokenizer.checked(context, planned)
    mine = planned["generator"].spec
    start = mine.inputs.get("warm_start") if mine else None
    warm = (start.id, context.store.record(start).notes["spec"]) if start else None
    draft = draft_model(identity(context.config.sample), context.store)
    drafting = None if draft is None else context.store.record(draft).notes["spec"]
    check_generator(context.config, ingest.classes(context, planned), spec, layout, warm, drafting)
    check_captions(context.config)
    check_columns(context.config)


TRAIN_GENERATOR = Step("train_generator", "generator", "Train the generator on the tokens.", needs, plan, run, check)

"""Step ``train_generator``: a generator on the tokens of the dataset, or the one that the run uses."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.models.core.build import ModelSpec
from tokenloom.tasks.data.conditions import check_captions, check_columns
from tokenloom.tasks.evaluation.evaluate import draft_model
from tokenloom.tasks.runtime.checks import check_generator, check_used_generator
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.steps import ingest, train_tokenizer
from tokenloom.tasks.steps.base import Context, Given, Inputs, Planned, Step, roles, used
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store
from tokenloom.tasks.training.distributed import plan_generator, train_model
from tokenloom.tasks.training.warm_start import warm_start


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """Tokens, and the tokenizer that made them; nothing where a generator is used."""
    if config.generator is None:
        return None
    return {} if config.generator.use is not None else roles("tokens", "tokenizer")


def plan(context: Context, inputs: Inputs) -> StepSpec | Given:
    """The training of the generator, from fresh weights or a warm start, or the generator that the run uses.

    Raises:
        ConfigError: a warm start that is not in the store, or that knows the codes of another tokenizer.
    """
    config, store, wanted = context.config, context.store, context.config.generator
    assert wanted is not None, "a run without a generator has no such step"
    if given := train_tokenizer.given_generator(config, store):
        return given
    fresh = plan_generator(config.name, wanted, inputs["tokens"], inputs["tokenizer"], store, sample=config.sample)
    if wanted.warm_start is None:
        return fresh
    start = warm_start(wanted.warm_start, config.register_.name or config.name, fresh, store, context.registry)
    return plan_generator(config.name, wanted, inputs["tokens"], inputs["tokenizer"], store, start, config.sample)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the generator, or find it."""
    planned = plan(context, inputs)
    if isinstance(planned, Given):
        return used(context, planned)
    return train_model(planned, context.store, context.cluster, context.tracker, context.report)


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the generator without memory on what the tokenizer will give, and look at the captions and columns that it needs."""
    config, store, method = context.config, context.store, context.config.generator
    assert method is not None, "a run without a generator has no such step"
    spec, layout = train_tokenizer.checked(context, planned)
    mine = planned["generator"].spec
    start = mine.inputs.get("warm_start") if mine else None
    warm = (start.id, store.record(start).notes["spec"]) if start else None
    draft = draft_model(identity(config.sample), store)
    drafting = None if draft is None else store.record(draft).notes["spec"]
    if given := train_tokenizer.given_generator(config, store):
        made = ModelSpec.from_dict(store.record(given.artifact).notes["spec"])
        check_used_generator(config, ingest.classes(context, planned), made, drafting)
    else:
        made = ModelSpec("generator", method.recipe or "", dict(method.args), dict(method.set))
        check_generator(config, ingest.classes(context, planned), spec, layout, warm, drafting)
    condition_spec = ConditionSpec.of(made)
    check_captions(config, condition_spec)
    check_columns(config, condition_spec)


TRAIN_GENERATOR = Step(
    "train_generator", "generator", "Train the generator on the tokens, or take the one that it uses.", needs, plan, run, check
)

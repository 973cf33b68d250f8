"""Steps ``stage_NAME``: further training of a run's generator, each an artifact on the one before (``stages`` of the run file).

Fine-tuning, post-training and distillation are stages: the same model, from the weights of the step before, under another
objective (``models/objectives``) or on other settings.  What is evaluated and registered is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.checks import check_stage
from tokenloom.tasks.steps import ingest, train_tokenizer
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store
from tokenloom.tasks.training.distributed import plan_generator, train_model
from tokenloom.tasks.training.plans import plan_stage


def steps(config: RunConfig) -> tuple[Step, ...]:
    """One step for each stage of a run."""
    return tuple(_step(config, number) for number in range(len(config.stages)))


def last(config: RunConfig) -> str:
    """Role of the generator after all of its training."""
    return _role(config, len(config.stages) - 1)


def _role(config: RunConfig, number: int) -> str:
    """Role of what stage ``number`` makes; before the first one stands the generator."""
    return "generator" if number < 0 else f"stage_{config.stages[number].name}"


def _step(config: RunConfig, number: int) -> Step:
    role = _role(config, number)
    summary = f"Train the generator further: stage {config.stages[number].name}."
    return Step(role, role, summary, partial(_needs, number), partial(_plan, number), partial(_run, number), partial(_check, number))


def _needs(number: int, config: RunConfig, _store: Store) -> dict[str, str]:
    """The generator of the step before, and what that was trained on."""
    return {"start": _role(config, number - 1), **roles("tokens", "tokenizer")}


def _plan(number: int, context: Context, inputs: Inputs) -> StepSpec:
    """The training of this stage from the weights of the step before.

    Raises:
        ConfigError: an unknown objective, one that the generator cannot be trained with, or a role that nothing has.
    """
    config, store = context.config, context.store
    spec = _before(context, inputs)
    for at, stage in enumerate(config.stages[: number + 1]):
        where = f"stages[{at}]"
        others = {role: _other(store, reference, f"{where}.roles.{role}") for role, reference in stage.roles.items()}
        spec = plan_stage(config.name, spec, inputs["start"], stage.train, stage.objective, others, where)
    return spec


def _before(context: Context, inputs: Inputs) -> StepSpec:
    """The training of the run's generator, or that of the one that it uses as if it had been trained on these tokens."""
    config, store = context.config, context.store
    assert config.generator is not None, "stages go on from a generator"
    given = train_tokenizer.given_generator(config, store)
    if given is None:
        return plan_generator(config.name, config.generator, inputs["tokens"], inputs["tokenizer"], store, sample=config.sample)
    spec = ModelSpec.from_dict(store.record(given.artifact).notes["spec"]).resolve()
    notes = {"recipe": spec.recipe, "args": spec.args, "set": spec.set, "sample": identity(config.sample)}
    trained_on = {name: inputs[name] for name in ("tokens", "tokenizer")}
    return StepSpec("train_generator", 1, "generator", config.name, {"recipe": spec.recipe, "config": spec.resolved}, trained_on, notes)


def _other(store: Store, reference: str, where: str) -> Artifact:
    try:
        return store.resolve(reference)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _run(number: int, context: Context, inputs: Inputs) -> Outcome:
    """Train the stage, or find it."""
    name = _role(context.config, number)
    spec = _plan(number, context, inputs)
    return train_model(spec, context.store, context.cluster, context.tracker, lambda _, *rest: context.report(name, *rest))


def _check(number: int, context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the generator with the stage's objective without memory."""
    check_stage(unmade(number, context), f"stages[{number}]", ingest.classes(context, planned), *train_tokenizer.checked(context, planned))


def unmade(number: int, context: Context) -> StepSpec:
    """The training of a stage as far as it is known before anything is made: its inputs are not."""
    unknown = {name: Artifact(name, context.config.name, "0" * 12, "") for name in ("tokens", "tokenizer")}
    return _plan(number, context, {**unknown, "start": Artifact("generator", context.config.name, "0" * 12, "")})
